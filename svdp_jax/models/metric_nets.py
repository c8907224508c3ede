"""The networks that metrics look through: LPIPS, I3D, ArcFace, SyncNet.

Pictures are channels last, and each network says which range it wants them in.
Norms use the statistics stored with the weights. Module names follow the usual
checkpoint files; `width` scales all channels at once, so that a test can be small.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

WIDTH = 64  # channels of the first layer of every published network here


def batch_norm(size: int, eps: float = 1e-5) -> nnx.BatchNorm:
    return nnx.BatchNorm(size, use_running_average=True, epsilon=eps, rngs=nnx.Rngs(0))


# --- LPIPS


@dataclass(frozen=True)
class LPIPSConfig:
    net: str = "alex"  # alex | vgg
    width: int = WIDTH


# Stages of the two trunks; features are taken after each. A stage is its pooling window before
# (stride 2; 0 for none), then convolutions as (channels, kernel, stride, padding).
TRUNKS = {
    "alex": (
        (0, ((64, 11, 4, 2),)),
        (3, ((192, 5, 1, 2),)),
        (3, ((384, 3, 1, 1),)),
        (0, ((256, 3, 1, 1),)),
        (0, ((256, 3, 1, 1),)),
    ),
    "vgg": tuple(
        (2 if stage else 0, count * ((channels, 3, 1, 1),))
        for stage, (channels, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)])
    ),
}
# Pictures in [-1, 1] to the mean and deviation that the trunks were trained with.
SHIFT, SCALE = np.array([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], np.float32)


class LPIPS(nnx.Module):
    """Perceptual distance of two pictures: weighted squared differences of unit-length features.

    Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1 of the published weights.
    """

    def __init__(self, config: LPIPSConfig, rngs: nnx.Rngs):
        self.stages = TRUNKS[config.net]
        self.features, self.lin, size = nnx.List(), nnx.List(), 3
        for _, convs in self.stages:
            for channels, kernel, stride, padding in convs:
                out = channels * config.width // WIDTH
                self.features.append(nnx.Conv(size, out, (kernel, kernel), stride, padding=padding, rngs=rngs))
                size = out
            self.lin.append(nnx.Param(jnp.ones(size)))

    def taps(self, x: jax.Array) -> list[jax.Array]:
        """Features after each stage, b y x d, every one of unit length over d."""
        x, layers, result = (x - SHIFT) / SCALE, iter(self.features), []
        for window, convs in self.stages:
            if window:
                x = nnx.max_pool(x, (window, window), (2, 2))
            for _ in convs:
                x = jax.nn.relu(next(layers)(x))
            result.append(x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
        return result

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distances (b,) of pictures (b y x 3) in [-1, 1]; 0 where they are the same."""
        stages = zip(self.taps(a), self.taps(b), self.lin)
        return sum((((x - y) ** 2) @ weight[...]).mean((1, 2)) for x, y, weight in stages)


# --- I3D


@dataclass(frozen=True)
class I3DConfig:
    classes: int = 400
    width: int = WIDTH


# Layers in order. Convolutions: channels, kernel, stride. Pools: window and stride over
# (frames, rows, columns). Mixed: channels of b0, b1a, b1b, b2a, b2b, b3b.
I3D_LAYERS: dict[str, tuple] = {
    "Conv3d_1a_7x7": (64, 7, 2),
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": (64, 1, 1),
    "Conv3d_2c_3x3": (192, 3, 1),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class Unit3D(nnx.Module):
    """Convolution over time and space with TensorFlow's padding, norm, ReLU."""

    def __init__(self, size: int, out: int, kernel: int, stride: int, rngs: nnx.Rngs):
        self.conv3d = nnx.Conv(size, out, 3 * (kernel,), stride, use_bias=False, rngs=rngs)
        self.bn = batch_norm(out, 1e-3)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv3d(x)))


class Mixed(nnx.Module):
    """Four branches side by side: 1x1, two of 1x1 then 3x3, and pooling then 1x1."""

    def __init__(self, size: int, widths: tuple[int, ...], rngs: nnx.Rngs):
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit3D(size, b0, 1, 1, rngs)
        self.b1a, self.b1b = Unit3D(size, b1a, 1, 1, rngs), Unit3D(b1a, b1b, 3, 1, rngs)
        self.b2a, self.b2b = Unit3D(size, b2a, 1, 1, rngs), Unit3D(b2a, b2b, 3, 1, rngs)
        self.b3b = Unit3D(size, b3b, 1, 1, rngs)
        self.out = b0 + b1b + b2b + b3b

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = nnx.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)
        return jnp.concatenate(branches, axis=-1)


class I3D(nnx.Module):
    """Inflated Inception, trained on Kinetics-400; its logits are the features of FVD.

    Source: Carreira and Zisserman 2017 (arXiv 1705.07750).
    """

    def __init__(self, config: I3DConfig, rngs: nnx.Rngs):
        size, scaled = 3, lambda channels: channels * config.width // WIDTH
        for name, spec in I3D_LAYERS.items():
            if name.startswith("Conv"):
                setattr(self, name, Unit3D(size, scaled(spec[0]), *spec[1:], rngs))
                size = scaled(spec[0])
            elif name.startswith("Mixed"):
                mixed = Mixed(size, tuple(map(scaled, spec)), rngs)
                setattr(self, name, mixed)
                size = mixed.out
        self.logits = nnx.Linear(size, config.classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (b, classes) of clips (b f y x 3) in [-1, 1]; FVD takes 16 frames of 224x224."""
        for name, spec in I3D_LAYERS.items():
            if name.startswith("MaxPool"):
                x = nnx.max_pool(x, *spec, "SAME")  # b f y x d
            else:
                x = getattr(self, name)(x)  # b f y x d
        x = x.mean((2, 3))  # b f d
        return self.logits((x[:, :-1] + x[:, 1:]) / 2).mean(1)


# --- ArcFace


@dataclass(frozen=True)
class ArcFaceConfig:
    layers: tuple[int, ...] = (3, 13, 30, 3)  # blocks: this is iresnet100; iresnet50 has 3, 4, 14, 3
    width: int = WIDTH
    embedding: int = 512
    size: int = 112  # pixels


class PReLU(nnx.Module):
    """Learned slope per channel below zero."""

    def __init__(self, size: int):
        self.slope = nnx.Param(jnp.full(size, 0.25))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.where(x >= 0, x, self.slope[...] * x)


def conv2d(size: int, out: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    padding = kernel // 2
    return nnx.Conv(size, out, (kernel, kernel), stride, padding=padding, use_bias=False, rngs=rngs)


class Shortcut(nnx.Module):
    def __init__(self, size: int, out: int, rngs: nnx.Rngs):
        self.conv, self.bn = conv2d(size, out, 1, 2, rngs), batch_norm(out)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class FaceBlock(nnx.Module):
    """Norm, convolution, norm, PReLU, convolution, norm; the first of a layer halves the picture."""

    def __init__(self, size: int, out: int, first: bool, rngs: nnx.Rngs):
        self.bn1, self.bn2, self.bn3 = batch_norm(size), batch_norm(out), batch_norm(out)
        self.conv1 = conv2d(size, out, 3, 1, rngs)
        self.conv2 = conv2d(out, out, 3, 1 + first, rngs)
        self.prelu = PReLU(out)
        if first:
            self.downsample = Shortcut(size, out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (self.downsample(x) if hasattr(self, "downsample") else x)


class ArcFace(nnx.Module):
    """Faces to embeddings whose angle tells whether they are of one person.

    Source: Deng et al. 2019 (arXiv 1801.07698), in InsightFace's improved residual network.
    """

    def __init__(self, config: ArcFaceConfig, rngs: nnx.Rngs):
        size = config.width
        self.conv1, self.bn1, self.prelu = conv2d(3, size, 3, 1, rngs), batch_norm(size), PReLU(size)
        for number, count in enumerate(config.layers):
            out = config.width << number
            blocks = [FaceBlock(size if i == 0 else out, out, i == 0, rngs) for i in range(count)]
            setattr(self, f"layer{number + 1}", nnx.List(blocks))
            size = out
        self.bn2 = batch_norm(size)
        self.fc = nnx.Linear(size * (config.size // 16) ** 2, config.embedding, rngs=rngs)
        self.features = batch_norm(config.embedding)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Embeddings (b d), of any length, of aligned faces (b y x 3) in [-1, 1]."""
        x = self.prelu(self.bn1(self.conv1(x)))  # b y x d
        for block in (block for number in range(1, 5) for block in getattr(self, f"layer{number}")):
            x = block(x)  # b y x d
        x = rearrange(self.bn2(x), "b y x d -> b (y x d)")
        return self.features(self.fc(x))  # b d


# --- SyncNet


@dataclass(frozen=True)
class SyncNetConfig:
    width: int = WIDTH
    embedding: int = 1024


# Convolutions as (channels, kernel, stride, padding, pooling window, its stride, its padding);
# no pooling where the window is empty. Sound: (coefficients, time). Lips: (frames, rows, columns).
SOUND_LAYERS = (
    (64, (3, 3), (1, 1), (1, 1), (), (), ()),
    (192, (3, 3), (1, 1), (1, 1), (3, 3), (1, 2), (0, 0)),
    (384, (3, 3), (1, 1), (1, 1), (), (), ()),
    (256, (3, 3), (1, 1), (1, 1), (), (), ()),
    (256, (3, 3), (1, 1), (1, 1), (3, 3), (2, 2), (0, 0)),
    (512, (5, 4), (1, 1), (0, 0), (), (), ()),
)
LIP_LAYERS = (
    (96, (5, 7, 7), (1, 2, 2), (0, 0, 0), (1, 3, 3), (1, 2, 2), (0, 0, 0)),
    (256, (1, 5, 5), (1, 2, 2), (0, 1, 1), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), (), (), ()),
    (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), (), (), ()),
    (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 3, 3), (1, 2, 2), (0, 0, 0)),
    (512, (1, 6, 6), (1, 1, 1), (0, 0, 0), (), (), ()),
)


def pairs(padding: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(p, p) for p in padding]


class ConvNorm(nnx.Module):
    """Convolution, norm, ReLU, and pooling if any."""

    def __init__(self, size: int, out: int, spec: list, rngs: nnx.Rngs):
        kernel, stride, padding, *self.pool = spec
        self.conv = nnx.Conv(size, out, kernel, stride, padding=pairs(padding), rngs=rngs)
        self.bn = batch_norm(out)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn(self.conv(x)))
        window, stride, padding = self.pool
        return nnx.max_pool(x, window, stride, pairs(padding)) if window else x


class Head(nnx.Module):
    def __init__(self, size: int, out: int, rngs: nnx.Rngs):
        self.linear_1, self.bn = nnx.Linear(size, size, rngs=rngs), batch_norm(size)
        self.linear_2 = nnx.Linear(size, out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(jax.nn.relu(self.bn(self.linear_1(x))))


class SyncNet(nnx.Module):
    """Fifth-seconds of lips and of sound to embeddings that are near where both belong together.

    Source: Chung and Zisserman 2016, "Out of time: automated lip sync in the wild".
    """

    def __init__(self, config: SyncNetConfig, rngs: nnx.Rngs):
        def tower(size, layers):
            modules = nnx.List()
            for channels, *spec in layers:
                out = channels * config.width // WIDTH
                modules.append(ConvNorm(size, out, spec, rngs))
                size = out
            return modules

        out = 512 * config.width // WIDTH
        self.netcnnaud, self.netcnnlip = tower(1, SOUND_LAYERS), tower(3, LIP_LAYERS)
        self.netfcaud, self.netfclip = (Head(out, config.embedding, rngs) for _ in range(2))

    def lips(self, x: jax.Array) -> jax.Array:
        """Embeddings (b d) of 5 frames each (b 5 224 224 3), blue first, in [0, 255]."""
        for layer in self.netcnnlip:
            x = layer(x)  # b 1 y x d
        return self.netfclip(rearrange(x, "b 1 1 1 d -> b d"))

    def sound(self, x: jax.Array) -> jax.Array:
        """Embeddings (b d) of 20 times 13 cepstral coefficients each (b 13 20)."""
        x = x[..., None]  # b 13 20 1
        for layer in self.netcnnaud:
            x = layer(x)  # b q t d
        return self.netfcaud(rearrange(x, "b 1 1 d -> b d"))
