#!/usr/bin/env python3
"""What the kernels' machine code says: counts of instructions, and the facts that their speed rests on.

    saip-engine bench ops --model h200 --preset saip-vit-tiny --images DIR
    tools/sass.py table DIR     a line for each kernel: instructions, wide and narrow accesses, matrix instructions, functions
    tools/sass.py check DIR     exit status 1 where a fact does not hold

Needs nvdisasm: tools/nvdisasm.sh fetches it.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys

# Where a kernel's text begins, and an instruction of it behind its address and its predicate.
LINE = re.compile(
    r"^[ \t]*(?:\.section[ \t]+\.text\.([A-Za-z0-9_]+)|/\*[0-9a-f]+\*/[ \t]+(?:@!?U?P[0-9T]+[ \t]+)?([A-Z0-9_.]+))", re.M
)


class Kernel:
    """A kernel of an image, with its constants and how often each instruction stands in its text."""

    def __init__(self, name, file, given, bf16, counts):
        self.name, self.file, self.given, self.bf16, self.counts = name, file, given, bf16, counts

    def count(self, start, *parts):
        """Instructions that begin with `start` and have all of `parts` among their modifiers."""
        matching = (n for op, n in self.counts.items() if op.split(".")[0] == start and all(p in op.split(".") for p in parts))
        return sum(matching)

    def total(self):
        return sum(n for op, n in self.counts.items() if op != "NOP")

    def global_accesses(self):
        """Loads and stores of global memory that move 16 bytes a thread, and all of them; copies by the tensor unit are
        neither."""
        kinds = ("LDG", "STG", "LDGSTS")
        return sum(self.count(k, "128") for k in kinds), sum(self.count(k) for k in kinds)

    def label(self):
        given = ", ".join("%s %s" % item for item in sorted(self.given.items()))
        return "%s of %s (%s)" % (self.name, self.file, given)


def kernels(folder, nvdisasm):
    with open(os.path.join(folder, "index.json"), encoding="utf-8") as file:
        index = json.load(file)
    for entry in index:
        command = [nvdisasm, "-c", "-ndf", os.path.join(folder, entry["image"])]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        counts = collections.OrderedDict()
        current = None
        for section, instruction in LINE.findall(text):
            if section:
                current = counts.setdefault(section, collections.Counter())
            elif current is not None:
                current[instruction] += 1
        for name, counted in counts.items():
            yield Kernel(name, entry["file"], entry["given"], entry["bf16"], counted)


def table(found):
    print("%-34s %6s %10s %6s %6s %6s %s" % ("kernel", "instr.", "16 B of", "HGMMA", "HMMA", "MUFU", "constants"))
    for k in found:
        wide, every = k.global_accesses()
        given = " ".join("%s=%s" % item for item in sorted(k.given.items()))
        print(
            "%-34s %6d %5d/%-4d %6d %6d %6d %s"
            % (k.name, k.total(), wide, every, k.count("HGMMA"), k.count("HMMA"), k.count("MUFU"), given)
        )


# EPILOGUE of gemm.cu.
PLAIN, GELU, GELU_BACKWARD = 0, 1, 3
# Instructions that an epilogue may add to each element that it stores.
MOST_OF_GELU = {GELU: 14.0, GELU_BACKWARD: 19.0}
# No GELU costs less: it would not be there.
LEAST_OF_GELU = 5.0


def stored_by_a_thread(given):
    """Elements of a tile that a thread of gemm_sm90 holds."""
    sharers = 1 if given["TURNS"] else 2
    return given["BM"] * given["BN"] // (128 * sharers)


def epilogues(found):
    """Of each pair of products that differ in what follows them alone: instructions an element that the GELU adds."""

    def same(k):
        return tuple(sorted((n, v) for n, v in k.given.items() if n != "EPILOGUE"))

    products = [k for k in found if k.name == "gemm_sm90"]
    plain = {same(k): k for k in products if k.given["EPILOGUE"] == PLAIN}
    for k in products:
        base = plain.get(same(k))
        if k.given["EPILOGUE"] in MOST_OF_GELU and base:
            yield k, (k.total() - base.total()) / stored_by_a_thread(k.given)


def broken(found):
    """Facts that do not hold, in words."""
    wrong = []

    def fact(holds, kernel, what):
        if not holds:
            wrong.append("%s: %s" % (kernel.label(), what))

    def wide_accesses(k):
        narrow = sum(k.count(op, width) for op in ("LDG", "STG") for width in ("U16", "S16", "U8", "S8"))
        fact(k.global_accesses()[0] > 0, k, "no access of global memory moves 16 bytes")
        fact(narrow == 0, k, "%d accesses of global memory move 2 bytes or less" % narrow)

    for k in found:
        fact(k.count("LDL") + k.count("STL") == 0, k, "local memory is used: registers are spilt or arrays are indexed")
        if k.name == "gemm_sm90":
            fact(k.count("HGMMA") > 0 and k.count("HMMA") == 0, k, "warpgroups do not multiply (HGMMA)")
            fact(k.count("UTMALDG") > 0, k, "tensor copies do not fetch (UTMALDG)")
        if k.name.startswith("attention") and k.file == "attention_resident.cu" and k.name != "attention_delta":
            fact(k.count("HMMA") > 0, k, "tensor cores do not multiply (HMMA)")
            wide_accesses(k)
        if k.name.startswith("layer_norm") and k.name != "layer_norm_backward_sum" and k.given.get("VEC", 0) > 1:
            wide_accesses(k)
    pairs = 0
    for k, each in epilogues(found):
        pairs += 1
        most = MOST_OF_GELU[k.given["EPILOGUE"]]
        what = "its epilogue adds %.1f instructions an element, which must be %.0f to %.0f" % (each, LEAST_OF_GELU, most)
        fact(LEAST_OF_GELU <= each <= most, k, what)
    if not pairs:
        wrong.append("no product with a GELU stands beside one without: nothing was compared")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "check"))
    parser.add_argument("folder")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    args = parser.parse_args()
    found = list(kernels(args.folder, args.nvdisasm))
    if args.what == "table":
        table(found)
        for k, each in epilogues(found):
            print("%5.1f instructions an element: %s" % (each, k.label()))
        return 0
    wrong = broken(found)
    for line in wrong:
        print("error: " + line, file=sys.stderr)
    if not wrong:
        print("%d kernels: all facts hold" % len(found))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
