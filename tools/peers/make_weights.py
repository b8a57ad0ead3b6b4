"""Makes the files that tests/weights.rs reads, with the programs whose formats they have.

    python3 -m venv VENV && VENV/bin/pip install torch timm safetensors
    VENV/bin/python tools/peers/make_weights.py            writes tests/data/weights and tests/golden
    VENV/bin/python tools/peers/make_weights.py check DIR  opens what the tests wrote into DIR (SAIP_WEIGHTS_OUT=DIR)

Values follow from names and places (`value`), so that the tests know them without Python.
"""

import argparse
import json
import pathlib
import sys
import zipfile
from collections import OrderedDict

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data/weights"
GOLDEN = ROOT / "tests/golden"
DIM, DEPTH, PATCH, GRID = 8, 2, 4, 3


def value(name, shape, dtype=torch.float32):
    """Multiples of 1/16 in [-8, 8), exact in every type: FNV-1a of the name, plus 37 times the place."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    n = torch.Size(shape).numel()
    t = ((h + 37 * torch.arange(n, dtype=torch.int64)) % 256 - 128).double() / 16
    return t.reshape(shape).to(dtype)


def vit(dtype=torch.float32):
    shapes = OrderedDict()
    shapes["cls_token"] = [1, 1, DIM]
    shapes["pos_embed"] = [1, 1 + GRID * GRID, DIM]
    shapes["patch_embed.proj.weight"] = [DIM, 3, PATCH, PATCH]
    shapes["patch_embed.proj.bias"] = [DIM]
    for i in range(DEPTH):
        for name, out, inner in [("attn.qkv", 3 * DIM, DIM), ("attn.proj", DIM, DIM),
                                 ("mlp.fc1", 2 * DIM, DIM), ("mlp.fc2", DIM, 2 * DIM)]:
            shapes[f"blocks.{i}.{name}.weight"] = [out, inner]
            shapes[f"blocks.{i}.{name}.bias"] = [out]
        for name in ["norm1", "norm2"]:
            shapes[f"blocks.{i}.{name}.weight"] = [DIM]
            shapes[f"blocks.{i}.{name}.bias"] = [DIM]
    shapes["norm.weight"] = [DIM]
    shapes["norm.bias"] = [DIM]
    return OrderedDict((k, value(k, s, dtype)) for k, s in shapes.items())


def prefixed(prefix, state):
    return OrderedDict((prefix + k, v) for k, v in state.items())


def save(name, content, **kwargs):
    torch.save(content, DATA / name, **kwargs)


def checkpoints():
    args = argparse.Namespace(arch="vit_tiny", lr=2.5e-4, out=pathlib.PosixPath("/runs"), sizes=[256, 128], flag=None)
    heads = {"head.mlp.0.weight": torch.ones(4, DIM), "head.last_layer.weight_v": torch.ones(3, 4)}
    student = {k: v + 1 for k, v in vit().items()}
    step = torch.tensor(7.0)
    optimizer = {"state": {0: {"step": step, "exp_avg": torch.zeros(4)}},
                 "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1]}]}
    save("dino.pth", {
        "student": prefixed("module.backbone.", student),
        "teacher": OrderedDict(**prefixed("backbone.", vit()), **heads),
        "optimizer": optimizer, "epoch": 300, "args": args, "fp16_scaler": None,
        "dino_loss": {"center": torch.zeros(1, 3)},
    })
    saip = prefixed("backbone.", vit())
    saip["backbone.inter_norm.weight"] = value("tap_norm.weight", [DIM])
    saip["backbone.inter_norm.bias"] = value("tap_norm.bias", [DIM])
    saip["csr_decoder.mask_token"] = torch.zeros(1, 1, 4)
    saip["csm_decoder.last_layer.weight_v"] = torch.zeros(3, 4)
    save("saip.pth", {"model": saip, "optimizer": optimizer, "epoch": 9, "scaler": {"scale": 65536.0}, "args": args})


def elements():
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(value("parameter", [2, 3]))
    base = value("base", [4, 6])
    shared = value("shared", [10])
    save("elements.pth", OrderedDict(
        f64=value("f64", [3], torch.float64), f32=value("f32", [2, 2]),
        f16=value("f16", [5], torch.float16), bf16=value("bf16", [5], torch.bfloat16),
        i64=torch.tensor(123456789012), i32=torch.arange(-2, 2, dtype=torch.int32), i16=torch.arange(3, dtype=torch.int16),
        i8=torch.arange(-1, 2, dtype=torch.int8), u8=torch.arange(3, dtype=torch.uint8), bool=torch.tensor([True, False]),
        parameter=module.weight, scalar=value("scalar", []), empty=torch.zeros(0, 4),
        transposed=base.t(), permuted=value("permuted", [2, 3, 4]).permute(2, 0, 1),
        columns=base[1:3, 2:5], every_second=shared[1::2], tail=shared[4:], expanded=value("row", [1, 3]).expand(4, 3),
        channels_last=value("channels_last", [2, 3, 2, 2]).contiguous(memory_format=torch.channels_last),
    ))
    # What each of them means, dense.
    loaded = torch.load(DATA / "elements.pth", weights_only=True)
    rows = {k: {"dtype": str(v.dtype)[6:], "shape": list(v.shape), "values": v.double().reshape(-1).tolist()}
            for k, v in loaded.items()}
    (DATA / "elements.json").write_text(json.dumps(rows, indent=1) + "\n")


class Evil:
    def __reduce__(self):
        return (print, ("the pickle was run",))


def hostile():
    save("evil.pth", {"model": vit(), "payload": Evil()})
    save("legacy.pth", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(DATA / "script.pt")
    with zipfile.ZipFile(DATA / "dino.pth") as src, zipfile.ZipFile(DATA / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as dst:
        for item in src.namelist():
            dst.writestr(item, src.read(item))


def positions():
    cases = []
    for frm, to in [((3, 3), (4, 2)), ((3, 3), (6, 5)), ((14, 14), (16, 8)), ((5, 4), (3, 2))]:
        table = value("pos", [1, frm[0] * frm[1], 2])
        grid = table.reshape(1, *frm, 2).permute(0, 3, 1, 2).double()
        out = F.interpolate(grid, size=to, mode="bicubic", antialias=True, align_corners=False)
        cases.append({"from": frm, "to": to, "values": out.permute(0, 2, 3, 1).reshape(-1).tolist()})
    (DATA / "positions.json").write_text(json.dumps(cases) + "\n")


def golden():
    import timm
    GOLDEN.mkdir(exist_ok=True)
    for name in ["vit_tiny_patch16_224", "tiny_vit_5m_224", "starnet_s3", "resnet18"]:
        rows = [f"{k},{'x'.join(map(str, v.shape))},{str(v.dtype)[6:]}"
                for k, v in timm.create_model(name, num_classes=0).state_dict().items()]
        (GOLDEN / f"{name}.csv").write_text("\n".join(["name,shape,dtype", *rows]) + "\n")


def check(folder):
    """The files that the tests write, opened as their users do."""
    import safetensors.torch
    folder = pathlib.Path(folder)
    expected = vit()
    bare = torch.load(folder / "bare.pth", weights_only=True)
    assert list(bare) == list(expected) and all(torch.equal(bare[k], v) for k, v in expected.items())
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in bare.values())
    mapped = torch.load(folder / "bare.pth", weights_only=True, mmap=True)
    assert all(torch.equal(mapped[k], v) for k, v in expected.items())
    mm = torch.load(folder / "mmpose.pth", weights_only=True)
    assert list(mm) == ["state_dict"] and torch.equal(mm["state_dict"]["backbone.ln1.weight"], expected["norm.weight"])
    assert torch.equal(mm["state_dict"]["backbone.layers.1.ffn.layers.0.0.bias"], expected["blocks.1.mlp.fc1.bias"])
    assert len(mm["state_dict"]) == len(expected)
    elements = torch.load(folder / "elements.pth", weights_only=True)
    for name, t in torch.load(DATA / "elements.pth", weights_only=True).items():
        assert elements[name].dtype == t.dtype and torch.equal(elements[name], t.detach()), name
    tensors = safetensors.torch.load_file(folder / "elements.safetensors")
    for name, t in elements.items():
        assert tensors[name].dtype == t.dtype and torch.equal(tensors[name], t), name
    with safetensors.safe_open(folder / "elements.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt", "geometry": "stride 32"}
    import timm
    for name in ["vit_tiny_patch16_224", "tiny_vit_5m_224", "starnet_s3", "resnet18"]:
        model = timm.create_model(name, num_classes=0)
        missing = model.load_state_dict(torch.load(folder / f"{name}.pth", weights_only=True), strict=True)
        print(name, missing)
    print("all files open with equal values")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        DATA.mkdir(parents=True, exist_ok=True)
        checkpoints()
        elements()
        hostile()
        positions()
        golden()
