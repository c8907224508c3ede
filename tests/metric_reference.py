"""The networks of the metrics in plain PyTorch, read from their public definitions, for comparison."""

import torch
import torch.nn.functional as F
from torch import nn

from svdp_jax.models.metric_nets import I3D_LAYERS  # only its numbers


class Stages(nn.Module):
    """Layers of a torchvision `features` list, with the places where LPIPS looks."""

    def __init__(self, layers, taps):
        super().__init__()
        self.features, self.taps = nn.Sequential(*layers), taps

    def forward(self, x):
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


def alexnet(w):
    relu = nn.ReLU
    return Stages(
        [
            nn.Conv2d(3, w, 11, 4, 2),
            relu(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(w, 3 * w, 5, padding=2),
            relu(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(3 * w, 6 * w, 3, padding=1),
            relu(),
            nn.Conv2d(6 * w, 4 * w, 3, padding=1),
            relu(),
            nn.Conv2d(4 * w, 4 * w, 3, padding=1),
            relu(),
        ],
        (1, 4, 7, 9, 11),
    ), (w, 3 * w, 6 * w, 4 * w, 4 * w)


def vgg16(w):
    layers, size = [], 3
    for out in (w, w, 0, 2 * w, 2 * w, 0, 4 * w, 4 * w, 4 * w, 0, 8 * w, 8 * w, 8 * w, 0, 8 * w, 8 * w, 8 * w):
        layers += [nn.Conv2d(size, out, 3, padding=1), nn.ReLU()] if out else [nn.MaxPool2d(2, 2)]
        size = out or size
    return Stages(layers, (3, 8, 15, 22, 29)), (w, 2 * w, 4 * w, 8 * w, 8 * w)


class LPIPS(nn.Module):
    def __init__(self, net, width):
        super().__init__()
        self.trunk, sizes = {"alex": alexnet, "vgg": vgg16}[net](width)
        for index, size in enumerate(sizes):  # a dropout stands before each 1x1 convolution
            model = nn.Sequential(nn.Dropout(), nn.Conv2d(size, 1, 1, bias=False))
            self.add_module(f"lin{index}", nn.ModuleDict({"model": model}))

    def forward(self, a, b):
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        total = 0
        for index, (x, y) in enumerate(zip(self.trunk((a - shift) / scale), self.trunk((b - shift) / scale))):
            x, y = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (x, y))
            head = getattr(self, f"lin{index}")["model"]
            total = total + head((x - y) ** 2).mean((1, 2, 3))
        return total


def same(x, kernel, stride):
    """TensorFlow's padding: as many outputs as strides fit, the odd pixel behind."""
    sides = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1]):
        pad = max((-(-size // s) - 1) * s + k - size, 0)
        sides += [pad // 2, pad - pad // 2]
    return F.pad(x, sides)


class Unit(nn.Module):
    def __init__(self, size, out, kernel, stride):
        super().__init__()
        self.kernel, self.stride = 3 * (kernel,), 3 * (stride,)
        self.conv3d = nn.Conv3d(size, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x):
        return self.bn(self.conv3d(same(x, self.kernel, self.stride))).relu()


def pool(x, kernel, stride):
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Inception(nn.Module):
    def __init__(self, size, widths):
        super().__init__()
        a, b, c, d, e, f = widths
        self.b0, self.b3b = Unit(size, a, 1, 1), Unit(size, f, 1, 1)
        self.b1a, self.b1b = Unit(size, b, 1, 1), Unit(b, c, 3, 1)
        self.b2a, self.b2b = Unit(size, d, 1, 1), Unit(d, e, 3, 1)

    def forward(self, x):
        last = self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), last], 1)


class I3D(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        size, scaled = 3, lambda n: n * width // 64
        for name, spec in I3D_LAYERS.items():
            if name.startswith("Conv"):
                self.add_module(name, Unit(size, scaled(spec[0]), *spec[1:]))
                size = scaled(spec[0])
            if name.startswith("Mixed"):
                widths = [scaled(n) for n in spec]
                self.add_module(name, Inception(size, widths))
                size = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(size, classes, 1)})

    def forward(self, x):
        for name, spec in I3D_LAYERS.items():
            x = pool(x, *spec) if name.startswith("MaxPool") else getattr(self, name)(x)
        x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        return self.logits["conv3d"](x)[..., 0, 0].mean(2)


class FaceBlock(nn.Module):
    def __init__(self, size, out, stride):
        super().__init__()
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(size), nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(size, out, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, stride, 1, bias=False)
        self.prelu, self.downsample = nn.PReLU(out), None
        if stride == 2:
            self.downsample = nn.Sequential(nn.Conv2d(size, out, 1, 2, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + (x if self.downsample is None else self.downsample(x))


class ArcFace(nn.Module):
    def __init__(self, layers, width, embedding, picture):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.prelu, size = nn.PReLU(width), width
        for index, count in enumerate(layers):
            out = width * 2**index
            blocks = [FaceBlock(out if i else size, out, 1 if i else 2) for i in range(count)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            size = out
        self.bn2 = nn.BatchNorm2d(size)
        self.fc = nn.Linear(size * (picture // 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.features(self.fc(x.flatten(1)))


def block(dims, size, out, kernel, stride=1, padding=0, pooling=None):
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return [conv(size, out, kernel, stride, padding), norm(out), nn.ReLU(), *([pooling] if pooling else [])]


def head(size, out):
    return nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, out))


class SyncNet(nn.Module):
    def __init__(self, width, embedding):
        super().__init__()
        w = width / 64
        a, b, c, d, e, f = (round(n * w) for n in (64, 96, 192, 256, 384, 512))
        self.netcnnaud = nn.Sequential(
            *block(2, 1, a, 3, 1, 1, nn.MaxPool2d(1, 1)),
            *block(2, a, c, 3, 1, 1, nn.MaxPool2d(3, (1, 2))),
            *block(2, c, e, 3, 1, 1),
            *block(2, e, d, 3, 1, 1),
            *block(2, d, d, 3, 1, 1, nn.MaxPool2d(3, 2)),
            *block(2, d, f, (5, 4)),
        )
        in_frame = (0, 1, 1)
        self.netcnnlip = nn.Sequential(
            *block(3, 3, b, (5, 7, 7), (1, 2, 2), 0, nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
            *block(3, b, d, (1, 5, 5), (1, 2, 2), in_frame, nn.MaxPool3d((1, 3, 3), (1, 2, 2), in_frame)),
            *block(3, d, d, (1, 3, 3), 1, in_frame),
            *block(3, d, d, (1, 3, 3), 1, in_frame),
            *block(3, d, d, (1, 3, 3), 1, in_frame, nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
            *block(3, d, f, (1, 6, 6)),
        )
        self.netfcaud, self.netfclip = head(f, embedding), head(f, embedding)

    def lips(self, x):
        return self.netfclip(self.netcnnlip(x).flatten(1))

    def sound(self, x):
        return self.netfcaud(self.netcnnaud(x).flatten(1))
