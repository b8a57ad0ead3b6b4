"""Takes the steps that the engine recorded with PyTorch's own reference of the method, and compares every loss and the end.

    saip-engine verify --record RECORD --preset demo --steps 200
    python3 -m venv VENV && VENV/bin/pip install torch timm safetensors
    VENV/bin/python tools/peers/train_reference.py --reference saip_reference.py RECORD

Both start from the recorded state and read the recorded views; learning rate, weight decay and momentum of a step are those of
its recorded configuration. What differs is who computes. Exits with 1 when a loss is beyond --tol of the reference's.
"""

import argparse
import importlib.util
import json
import pathlib
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file


def opened(path):
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["config"]), {k: f.get_tensor(k) for k in f.keys()}


def under(prefix, tensors, dtype):
    return {k[len(prefix):]: v.to(dtype) for k, v in tensors.items() if k.startswith(prefix)}


def loaded(module, state):
    """Fills everything that the record has; counters of batches are nobody's."""
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    assert not missing and not unexpected, f"missing {missing}, unexpected {unexpected}"


def end(name, module, first, last):
    """How far the ends are apart, as a share of the way that the reference went from the start."""
    rows = []
    for k, v in module.state_dict().items():
        if k.endswith("num_batches_tracked"):
            continue
        way = (v - first[k]).norm().item()
        rows.append(((v - last[k]).norm().item(), way, k))
    apart, way = (sum(r[i] ** 2 for r in rows) ** 0.5 for i in (0, 1))
    print(f"{name}: {len(rows)} tensors, all of it {apart / max(way, 1e-30):.3e} of its way apart")
    for a, w, k in sorted(rows, key=lambda r: -r[0])[:5]:
        print(f"  {a / max(w, 1e-30):10.3e}  {k}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", type=pathlib.Path)
    p.add_argument("--reference", type=pathlib.Path, required=True, help="the reference's program")
    p.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    p.add_argument("--tol", type=float, default=0.01, help="largest difference of a loss, as a share of the reference's")
    p.add_argument("--csv", type=pathlib.Path, help="write both losses of every step here")
    a = p.parse_args()
    spec = importlib.util.spec_from_file_location("reference", a.reference)
    ref = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ref)
    dtype = getattr(torch, a.dtype)
    steps = sorted(a.record.glob("step-*.safetensors"))
    assert steps, f"{a.record}: no recorded step"
    cfg, _ = opened(steps[0])
    first, last = (load_file(a.record / f"{n}.safetensors") for n in ("initial", "final"))
    expert = ref.Expert(cfg).to(dtype)
    student = ref.Student(cfg, expert).to(dtype)
    loaded(student, under("student.", first, dtype))
    loaded(expert, under("expert.", first, dtype))
    for q in expert.parameters():
        q.requires_grad_(False)
    center = under("state.", first, dtype)["center"]
    opt, lines, worst = ref.make_optimizer(student, cfg), ["step,loss,engine,reference"], (0.0, 0, "")
    for i, path in enumerate(steps):
        cfg, tensors = opened(path)
        for group, decays in zip(opt.param_groups, (True, False)):
            group.update(lr=cfg["lr"], betas=tuple(cfg["betas"]), weight_decay=cfg["weight_decay"] if decays else 0.0)
        views = {k[5:]: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items() if k.startswith("view.")}
        losses = ref.train_step(student, expert, center, views, cfg, opt)
        for name, value in losses.items():
            mine, theirs = tensors[f"loss.{name}"].item(), value.item()
            error = abs(mine - theirs) / max(abs(theirs), 1e-12)
            worst = max(worst, (error, i + 1, name))
            lines.append(f"{i + 1},{name},{mine:.9g},{theirs:.9g}")
        if i == 0 or (i + 1) % 20 == 0:
            told = ", ".join(f"{k} {tensors[f'loss.{k}'].item():.6f} / {v.item():.6f}" for k, v in losses.items())
            print(f"step {i + 1}: engine / reference: {told}", flush=True)
    if a.csv:
        a.csv.write_text("\n".join(lines) + "\n")
    for name, module in (("student", student), ("expert", expert)):
        end(name, module, under(f"{name}.", first, dtype), under(f"{name}.", last, dtype))
    error, step, name = worst
    passed = error <= a.tol
    print(f"{'passed' if passed else 'FAILED'}: {len(steps)} steps, the worst loss {error:.3e} off ({name} of step {step}), allowed {a.tol:g}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
