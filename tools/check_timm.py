#!/usr/bin/env python3
"""Compares exported encoders with timm's own: the same images, the same weights, image token and stride-16 tokens.

    python tools/check_timm.py --timm DIR --features DIR --images DIR [--pth FILE] [--onnx FILE] [--tol 1e-5]

--timm      the folder of `saip-engine export RUN --format timm`
--features  the folder of `saip-engine embed RUN --images DIR --tokens both --out DIR`
--images    the folder of images: of the encoder's size, so that nobody resizes, and PNG, since JPEG decoders differ by grey levels
--pth       a bare file of `export --format pth`: opened by torch.load(weights_only=True), compared tensor by tensor
--onnx      a model of `export --format onnx`, run by ONNX Runtime

Needs timm, torch, safetensors, pillow and numpy; onnxruntime with --onnx. Errors are relative to the largest value.
"""
import argparse, csv, json, os, sys

import numpy as np
import timm, torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file


def images(folder, names, config):
    """[n, 3, H, W], normalised by the folder's own mean and deviation."""
    c, h, w = config["input_size"]
    mean, std = (np.array(config[k], np.float32).reshape(3, 1, 1) for k in ("mean", "std"))
    out = []
    for name in names:
        picture = Image.open(os.path.join(folder, name)).convert("RGB")
        if picture.size != (w, h):
            sys.exit(f"{name} is {picture.size[1]}x{picture.size[0]}, the encoder takes {h}x{w}: give images of that size")
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)
        out.append((pixels - mean) / std)
    return torch.from_numpy(np.stack(out))


def timm_tokens(model, x, folder):
    """The image token, and the stride-16 tokens as the engine gives them."""
    image = model.forward_head(model.forward_features(x), pre_logits=True)
    if hasattr(model, "blocks"):
        tap = json.load(open(os.path.join(folder, "config.json")))["saip_engine"]["tap"]
        patch = model.forward_intermediates(x, indices=[int(tap)], norm=False, intermediates_only=True)[0]
        norm = load_file(os.path.join(folder, "tap_norm.safetensors"))
        patch = patch.flatten(2).transpose(1, 2)
        patch = F.layer_norm(patch, patch.shape[-1:], norm["tap_norm.weight"], norm["tap_norm.bias"], 1e-6)
    else:
        # A ResNet counts its stem, too.
        index = next(i for i, f in enumerate(model.feature_info) if f["reduction"] == 16)
        patch = model.forward_intermediates(x, indices=[index], intermediates_only=True)[0].flatten(2).transpose(1, 2)
    return image.numpy(), patch.numpy()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("timm", "features", "images"):
        ap.add_argument(f"--{name}", required=True)
    ap.add_argument("--pth")
    ap.add_argument("--onnx")
    ap.add_argument("--tol", type=float, default=1e-5)
    ap.add_argument("--onnx-tol", type=float, default=1e-4)
    ap.add_argument("--count", type=int, default=8, help="images to compare")
    a = ap.parse_args()

    config = json.load(open(os.path.join(a.timm, "config.json")))["pretrained_cfg"]
    rows = list(csv.DictReader(open(os.path.join(a.features, "files.csv"))))[: a.count]
    x = images(a.images, [r["file"] for r in rows], config)
    ours = [np.load(os.path.join(a.features, f"{n}.npy"))[: len(rows)] for n in ("image_token", "patch_tokens")]
    model = timm.create_model(f"local-dir:{a.timm}", pretrained=True).eval()
    checks = []

    def check(what, got, tol):
        for name, mine, theirs in zip(("image token", "stride-16 tokens"), ours, got):
            same = mine.shape == theirs.shape
            error = float(np.abs(mine - theirs).max() / np.abs(theirs).max()) if same else float("inf")
            checks.append((f"{what}: {name}", str(theirs.shape), error, tol))

    with torch.inference_mode():
        check(f"timm {timm.__version__}", timm_tokens(model, x, a.timm), a.tol)
    if a.onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(a.onnx, providers=["CPUExecutionProvider"])
        check(f"ONNX Runtime {onnxruntime.__version__}", session.run(None, {"images": x.numpy()}), a.onnx_tol)
    if a.pth:
        state, own = torch.load(a.pth, weights_only=True), model.state_dict()
        same = state.keys() == own.keys() and all(torch.equal(state[k], own[k]) for k in own)
        checks.append((f"torch.load: {len(own)} tensors", "", 0.0 if same else float("inf"), 0.0))

    width = max(len(c[0]) for c in checks)
    for name, shape, error, tol in checks:
        print(f"{name:{width}}  {shape:16}  {error:9.2e}  {'ok' if error <= tol else f'beyond {tol:g}'}")
    return 0 if all(error <= tol for *_, error, tol in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
