"""Stands for the PyTorch peer: refuses the libraries that are set for the engine, and answers at once."""

import json, os, sys

if "/lib" in os.environ.get("LD_LIBRARY_PATH", ""):
    raise RuntimeError("LD_LIBRARY_PATH replaces the libraries that PyTorch brings")
flags = sys.argv[1:]
value = lambda name, default: flags[flags.index(name) + 1] if name in flags else default
with open(os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], "kernel"), "w") as file:
    file.write("compiled")
print("a warning")
print(
    json.dumps(
        {
            "case": value("--case", "vit-tiny"),
            "batch": int(value("--batch", 0)),
            "device": "cuda",
            "bf16": "--bf16" in flags,
            "compile": "--compile" in flags,
            "torch": "2.11.0",
            "median_s": 0.2,
            "min_s": 0.2,
            "max_s": 0.3,
            "images_per_s": 1280.0,
            "loss": 17.5,
            "gpu": "NVIDIA Invented 100",
            "peak_gib": 40.5,
        }
    )
)
