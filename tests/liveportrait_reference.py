"""LivePortrait in plain PyTorch, read from its description, under the names of its published files.

It shares no code with svdp_jax but the config of sizes. `write` makes the files as they are
published: state dicts in .pth, spectral norm unfolded, the small networks behind `module.`.
"""

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm

KEYPOINTS, BINS = 21, 66
FILES = {
    "base_models/appearance_feature_extractor.pth": "appearance",
    "base_models/motion_extractor.pth": "motion",
    "base_models/warping_module.pth": "warping",
    "base_models/spade_generator.pth": "generator",
}
RETARGETING = "retargeting_models/stitching_retargeting_module.pth"


class Normed(nn.Module):
    """conv, norm, activation, pooling; `up` enlarges before."""

    def __init__(self, conv, norm, pool=None, up=None, slope=0.0):
        super().__init__()
        self.conv, self.norm, self.pooled, self.up, self.slope = conv, norm, pool, up, slope

    def forward(self, x):
        x = F.interpolate(x, scale_factor=self.up, mode="nearest") if self.up else x
        x = F.leaky_relu(self.norm(self.conv(x)), self.slope)
        return self.pooled(x) if self.pooled else x


def conv2(a, b, k=3):
    return nn.Conv2d(a, b, k, padding=k // 2)


def conv3(a, b, k=3):
    return nn.Conv3d(a, b, k, padding=k // 2)


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(c), nn.BatchNorm3d(c)
        self.conv1, self.conv2 = conv3(c, c), conv3(c, c)

    def forward(self, x):
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Appearance(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, w = c, c.appearance
        self.first = Normed(conv2(3, w[0]), nn.BatchNorm2d(w[0]))
        self.down_blocks = nn.ModuleList(Normed(conv2(a, b), nn.BatchNorm2d(b), nn.AvgPool2d(2)) for a, b in zip(w, w[1:]))
        self.second = conv2(w[-1], c.channels * c.depth, 1)
        blocks = {f"3dr{i}": Residual(c.channels) for i in range(c.resblocks)}
        self.resblocks_3d = nn.ModuleDict(blocks)

    def forward(self, x):
        x = self.first(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.second(x)
        x = x.view(len(x), self.c.channels, self.c.depth, *x.shape[2:])
        for block in self.resblocks_3d.values():
            x = block(x)
        return x


class LastNorm(nn.LayerNorm):
    """Over channels, of channels-first pictures."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GRN(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 1, 1, d)) for _ in range(2))

    def forward(self, x):
        g = x.norm(p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (g / (g.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class NextBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.dwconv = nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.pwconv1, self.grn, self.pwconv2 = nn.Linear(d, 4 * d), GRN(4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        out = self.norm(self.dwconv(x).movedim(1, -1))
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(out)))).movedim(-1, 1)


class Detector(nn.Module):
    def __init__(self, c):
        super().__init__()
        w = c.motion
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, w[0], 4, 4), LastNorm(w[0], eps=1e-6))]
            + [nn.Sequential(LastNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, 2)) for a, b in zip(w, w[1:])]
        )
        self.stages = nn.ModuleList(nn.Sequential(*[NextBlock(d) for _ in range(n)]) for d, n in zip(w, c.motion_blocks))
        self.norm = nn.LayerNorm(w[-1], eps=1e-6)
        sizes = dict(kp=63, exp=63, t=3, scale=1, pitch=BINS, yaw=BINS, roll=BINS)
        for name, size in sizes.items():
            self.add_module(f"fc_{name}", nn.Linear(w[-1], size))

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages):
            x = stage(down(x))
        x = self.norm(x.mean((2, 3)))
        out = {n: getattr(self, f"fc_{n}")(x) for n in ("kp", "exp", "t", "scale", "pitch", "yaw", "roll")}
        for name in ("kp", "exp"):
            out[name] = out[name].view(-1, KEYPOINTS, 3)
        for name in ("pitch", "yaw", "roll"):
            bins = torch.arange(BINS, dtype=x.dtype)
            out[name] = (out[name].softmax(1) * bins).sum(1) * 3 - 97.5
        return out


class Motion(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.detector = Detector(c)

    def forward(self, x):
        return self.detector(x)


class Encoder(nn.Module):
    def __init__(self, size, w):
        super().__init__()
        pool = nn.AvgPool3d((1, 2, 2))
        self.down_blocks = nn.ModuleList(Normed(conv3(a, b), nn.BatchNorm3d(b), pool) for a, b in zip((size, *w[1:]), w[1:]))


class Decoder(nn.Module):
    def __init__(self, size, w):
        super().__init__()
        n = len(w) - 1
        self.up_blocks = nn.ModuleList(
            Normed(conv3(w[i + 1] * (1 if i == n - 1 else 2), w[i]), nn.BatchNorm3d(w[i]), up=(1, 2, 2))
            for i in reversed(range(n))
        )
        self.conv, self.norm = conv3(w[0] + size, w[0] + size), nn.BatchNorm3d(w[0] + size)


class Hourglass(nn.Module):
    def __init__(self, size, w):
        super().__init__()
        self.encoder, self.decoder = Encoder(size, w), Decoder(size, w)

    def forward(self, x):
        levels = [x]
        for block in self.encoder.down_blocks:
            levels.append(block(levels[-1]))
        x = levels.pop()
        for block in self.decoder.up_blocks:
            x = torch.cat([block(x), levels.pop()], 1)
        return F.relu(self.decoder.norm(self.decoder.conv(x)))


def coordinates(d, h, w):
    z, y, x = (torch.linspace(-1, 1, n) for n in (d, h, w))
    z, y, x = torch.meshgrid(z, y, x, indexing="ij")
    return torch.stack([x, y, z], -1)


def gaussian(grid, points):
    square = ((grid - points[:, :, None, None, None]) ** 2).sum(-1)
    return torch.exp(-0.5 * square / 0.01)


class Dense(nn.Module):
    def __init__(self, c):
        super().__init__()
        n = KEYPOINTS + 1
        size = n * (1 + c.compress)
        self.hourglass = Hourglass(size, c.hourglass)
        out = c.hourglass[0] + size
        self.mask = conv3(out, n, 7)
        self.compress, self.norm = conv3(c.channels, c.compress, 1), nn.BatchNorm3d(c.compress)
        self.occlusion = conv2(out * c.depth, 1, 7)

    def forward(self, volume, source, driven):
        b, _, d, h, w = volume.shape
        small, n = F.relu(self.norm(self.compress(volume))), KEYPOINTS + 1
        grid = coordinates(d, h, w)
        flows = grid - driven[:, :, None, None, None] + source[:, :, None, None, None]
        flows = torch.cat([grid.expand(b, 1, d, h, w, 3), flows], 1)
        repeated = small[:, None].expand(b, n, *small.shape[1:]).reshape(b * n, *small.shape[1:])
        moved = F.grid_sample(repeated, flows.view(b * n, d, h, w, 3), align_corners=False)
        heat = gaussian(grid, driven) - gaussian(grid, source)
        heat = torch.cat([torch.zeros(b, 1, d, h, w), heat], 1)[:, :, None]
        x = torch.cat([heat, moved.view(b, n, -1, d, h, w)], 2).view(b, -1, d, h, w)
        x = self.hourglass(x)
        mask = self.mask(x).softmax(1)
        places = (mask[..., None] * flows).sum(1)
        return places, self.occlusion(x.view(b, -1, h, w)).sigmoid()


class Warping(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dense_motion_network = Dense(c)
        self.third = Normed(conv2(c.channels * c.depth, c.warped), nn.BatchNorm2d(c.warped), slope=0.01)
        self.fourth = conv2(c.warped, c.warped, 1)

    def forward(self, volume, source, driven):
        places, seen = self.dense_motion_network(volume, source, driven)
        x = F.grid_sample(volume, places, align_corners=False).flatten(1, 2)
        return self.fourth(self.third(x)) * seen, seen


class Spade(nn.Module):
    def __init__(self, size, given, hidden):
        super().__init__()
        self.mlp_shared = nn.Sequential(conv2(given, hidden), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = conv2(hidden, size), conv2(hidden, size)

    def forward(self, x, given):
        hidden = self.mlp_shared(F.interpolate(given, size=x.shape[2:], mode="nearest"))
        return F.instance_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SpadeBlock(nn.Module):
    def __init__(self, a, b, given, hidden):
        super().__init__()
        small, self.other = min(a, b), a != b
        self.conv_0, self.conv_1 = spectral_norm(conv2(a, small)), spectral_norm(conv2(small, b))
        self.norm_0, self.norm_1 = Spade(a, given, hidden), Spade(small, given, hidden)
        if self.other:
            self.conv_s = spectral_norm(nn.Conv2d(a, b, 1, bias=False))
            self.norm_s = Spade(a, given, hidden)

    def forward(self, x, given):
        out = self.conv_0(F.leaky_relu(self.norm_0(x, given), 0.2))
        out = self.conv_1(F.leaky_relu(self.norm_1(out, given), 0.2))
        return out + (self.conv_s(self.norm_s(x, given)) if self.other else x)


class Generator(nn.Module):
    def __init__(self, c):
        super().__init__()
        (a, b, last), self.count = c.generator, c.middle
        self.fc = conv2(c.warped, a)
        for i in range(c.middle):
            self.add_module(f"G_middle_{i}", SpadeBlock(a, a, c.warped, c.spade))
        self.up_0, self.up_1 = (SpadeBlock(*p, c.warped, c.spade) for p in ((a, b), (b, last)))
        self.conv_img = nn.Sequential(conv2(last, 12), nn.PixelShuffle(2))

    def forward(self, given):
        x = self.fc(given)
        for i in range(self.count):
            x = getattr(self, f"G_middle_{i}")(x, given)
        for block in (self.up_0, self.up_1):
            x = block(F.interpolate(x, scale_factor=2, mode="nearest"), given)
        return self.conv_img(F.leaky_relu(x, 0.2)).sigmoid()


class Small(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        layers = [layer for p in zip(sizes, sizes[1:]) for layer in (nn.Linear(*p), nn.ReLU())]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, x):
        return self.mlp(x)


class LivePortrait(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.appearance, self.motion = Appearance(c), Motion(c)
        self.warping, self.generator = Warping(c), Generator(c)
        self.shoulder = Small(126, *c.shoulder, 65)
        self.mouth, self.eye = Small(65, *c.mouth, 63), Small(66, *c.eye, 63)

    def forward(self, source, driving, relative=True, stitch=True):
        """One source and the frames of a driver, b 3 y x, to the frames of the source in motion."""
        s, d = self.motion(source), self.motion(driving)
        x_s, x_d = points(s), driven(s, d, relative)
        if stitch:
            change = self.shoulder(torch.cat([x_s.expand_as(x_d).flatten(1), x_d.flatten(1)], 1))
            x_d = x_d + change[:, :63].view(-1, KEYPOINTS, 3)
            x_d[..., :2] += change[:, None, 63:]
        volume = self.appearance(source).expand(len(x_d), -1, -1, -1, -1)
        features, _ = self.warping(volume, x_s.expand_as(x_d), x_d)
        return self.generator(features)


def rotation(m):
    p, y, r = (m[name] * torch.pi / 180 for name in ("pitch", "yaw", "roll"))
    rows = []
    for p, y, r in zip(p, y, r):
        x_ = torch.tensor([[1, 0, 0], [0, p.cos(), -p.sin()], [0, p.sin(), p.cos()]])
        y_ = torch.tensor([[y.cos(), 0, y.sin()], [0, 1, 0], [-y.sin(), 0, y.cos()]])
        z_ = torch.tensor([[r.cos(), -r.sin(), 0], [r.sin(), r.cos(), 0], [0, 0, 1]])
        rows.append((z_ @ y_ @ x_).T)
    return torch.stack(rows)


def points(m):
    t = m["t"].clone()
    t[:, 2] = 0
    return m["scale"][:, None] * (m["kp"] @ rotation(m) + m["exp"]) + t[:, None]


def driven(s, d, relative):
    """Driven keypoints, not stitched; the first driving frame is the reference."""
    first = {name: value[:1] for name, value in d.items()}
    if relative:
        turn = rotation(d) @ rotation(first).mT @ rotation(s)
        delta = s["exp"] + d["exp"] - first["exp"]
        scale, t = s["scale"] * d["scale"] / first["scale"], s["t"] + d["t"] - first["t"]
    else:
        turn, scale, t = rotation(d), s["scale"], d["t"].clone()
        delta = s["exp"].repeat(len(t), 1, 1)
        for k in (1, 2, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20):
            delta[:, k] = d["exp"][:, k]
        for k, axis in ((3, 1), (4, 1), (5, 2), (8, 2), (9, 1), (9, 2)):
            delta[:, k, axis] = d["exp"][:, k, axis]
    t = t * torch.tensor([1.0, 1.0, 0.0])
    return scale[:, None] * (s["kp"] @ turn + delta) + t[:, None]


# What the release does around its networks. Pictures are (h, w, 3) uint8, points (x, y).

CROP = 512
LIPS, EYES = [6, 12, 14, 17, 19, 20], [11, 13, 15, 16, 18]


def placed(eyes, lips, scale, down, upright):
    """2 x 3, from the picture to the crop of a face, by the middles of its eyes and of its lips. The published square
    is around 203 landmarks; here it is told from the two points, as in svdp_jax."""
    eyes, lips = np.asarray(eyes, float), np.asarray(lips, float)
    axis = (lips - eyes) / np.linalg.norm(lips - eyes) if upright else np.array([0.0, 1.0])
    side = scale * 2.1 * np.linalg.norm(lips - eyes)
    middle = eyes + 0.7 * (lips - eyes) + down * side * axis
    turn = np.array([[axis[1], -axis[0]], axis]) * CROP / side
    return np.concatenate([turn, (CROP / 2 - turn @ middle)[:, None]], 1)


def source_crop(picture, matrix):
    return cv2.warpAffine(picture, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR)


def driving_crop(frame, matrix):
    """In whole pixels; beyond the frame its edge is repeated."""
    side = round(CROP / matrix[0, 0])
    left, top = np.round(-matrix[:, 2] / matrix[0, 0]).astype(int)
    whole = cv2.warpAffine(
        frame, np.float64([[1, 0, -left], [0, 1, -top]]), (side, side), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.resize(whole, (256, 256), interpolation=cv2.INTER_AREA)


def soft_mask():
    """Of the crop: 1 within 16 pixels of each side, round corners, falling linearly."""
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32)
    far = [np.maximum(0, np.maximum(16 - v, v - (CROP - 16))) for v in (x, y)]
    return np.clip(1 - np.hypot(*far) / 16, 0, 1)


def pasted(picture, matrix, portrait):
    """Where the mask reaches half a pixel beyond the portrait, its edge is repeated; published is black."""
    back, size = cv2.invertAffineTransform(matrix), picture.shape[1::-1]
    mask = cv2.warpAffine(soft_mask(), back, size, flags=cv2.INTER_LINEAR)[..., None]
    fitted = cv2.warpAffine(portrait, back, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    return np.clip(mask * fitted + (1 - mask) * picture, 0, 255)


def tensor(pictures):
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 255


def animated(model, source, driving, relative=True, region="all", multiplier=1.0, eyes=None, lips=None, opening=None, first=0):
    """Crops, 512 and 256, to pictures (f, 512, 512, 3) of 0..255. eyes, lips: wanted openings; opening: the source's."""
    half = cv2.resize(source, (256, 256), interpolation=cv2.INTER_AREA)
    s, d = model.motion(tensor([half])), model.motion(tensor(driving))
    x_s, x_0 = points(s), {name: value[first : first + 1] for name, value in d.items()}
    n, pose, face = len(driving), region in ("all", "pose"), region in ("all", "exp")
    turn = rotation(s).expand(n, 3, 3)
    if pose:
        turn = rotation(d) @ rotation(x_0).mT @ rotation(s) if relative else rotation(d)
    told = s["exp"] + d["exp"] - x_0["exp"] if relative else d["exp"]
    delta = s["exp"].repeat(n, 1, 1)
    if face and relative:
        delta = told
    elif face:
        for k in (1, 2, 6, *range(11, 21)):
            delta[:, k] = told[:, k]
        for k, axis in ((3, 1), (4, 1), (5, 2), (8, 2), (9, 1), (9, 2)):
            delta[:, k, axis] = told[:, k, axis]
    for k in {"lip": LIPS, "eyes": EYES}.get(region, ()):
        delta[:, k] = told[:, k]
    scale = s["scale"] * d["scale"] / x_0["scale"] if relative and region == "all" else s["scale"]
    t = s["t"]
    if pose:
        t = s["t"] + d["t"] - x_0["t"] if relative else d["t"]
    t = t * torch.tensor([1.0, 1.0, 0.0])
    x_d = scale[:, None] * (s["kp"] @ turn + delta) + t[:, None]
    shifts = 0
    if eyes is not None:
        shifts = model.eye(torch.cat([x_s.flatten(1), torch.tensor([[*opening[:2], eyes]])], 1)).view(1, -1, 3)
    if lips is not None:
        shifts = shifts + model.mouth(torch.cat([x_s.flatten(1), torch.tensor([[opening[2], lips]])], 1)).view(1, -1, 3)
    if eyes is not None or lips is not None:
        x_d = (x_s if relative else x_d) + shifts
        x_d = x_d.expand(n, -1, -1).clone()
    change = model.shoulder(torch.cat([x_s.expand_as(x_d).flatten(1), x_d.flatten(1)], 1))
    x_d = x_d + change[:, :63].view(-1, KEYPOINTS, 3)
    x_d[..., :2] += change[:, None, 63:]
    x_d = x_s + (x_d - x_s) * multiplier
    volume = model.appearance(tensor([half])).expand(n, -1, -1, -1, -1)
    features, _ = model.warping(volume, x_s.expand_as(x_d), x_d)
    return (model.generator(features).clip(0, 1) * 255).movedim(1, -1).numpy()


def randomized(config, seed=0) -> LivePortrait:
    """The networks with random weights that keep the signal's size and move something.

    Depth would drown it otherwise; statistics of norms and singular vectors are random too.
    """
    torch.manual_seed(seed)
    model = LivePortrait(config).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        leaf = name.rpartition(".")[2]
        if leaf == "running_var" or (leaf == "weight" and value.ndim == 1):
            value.uniform_(0.7, 1.3)
        elif leaf in ("running_mean", "bias", "gamma", "beta"):
            value.normal_(0, 0.1)
        elif leaf in ("weight", "weight_orig"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    for module in model.modules():
        if hasattr(module, "weight_orig"):
            matrix = module.weight_orig.flatten(1)
            for _ in range(3):  # power iterations, as in training
                module.weight_v.copy_(F.normalize(matrix.T @ module.weight_u, dim=0))
                module.weight_u.copy_(F.normalize(matrix @ module.weight_v, dim=0))
    # As after training: small expressions and shifts, a scale near one, weak modulation, and outputs that
    # are not saturated. Else these networks multiply any rounding, PyTorch's own too, by a hundred.
    dense, small = model.warping.dense_motion_network, {"exp": 0.1, "t": 0.2, "scale": 0.1, "kp": 0.5}
    for name, size in small.items():
        getattr(model.motion.detector, f"fc_{name}").weight *= size
    model.motion.detector.fc_scale.bias += 1
    scales = ((dense.mask, 0.06), (dense.occlusion, 0.06), (model.generator.conv_img[0], 0.25), (model.shoulder.mlp[-1], 0.05))
    for layer, size in scales:
        layer.weight *= size
    for name, parameter in model.named_parameters():
        if "mlp_gamma.weight" in name:
            parameter *= 0.1
    return model


def write(model: LivePortrait, config, folder: Path) -> Path:
    """The published files, and the sizes where they are not the published ones."""
    for file, name in FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(getattr(model, name).state_dict(), folder / file)
    small = {
        f"retarget_{name}": {f"module.{k}": v for k, v in getattr(model, name).state_dict().items()}
        for name in ("shoulder", "mouth", "eye")
    }
    (folder / RETARGETING).parent.mkdir(parents=True, exist_ok=True)
    torch.save(small, folder / RETARGETING)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return folder
