#!/usr/bin/env python3
"""Figures in the READMEs come from files: benches/results/*.json, in the form that benches/results/README.md tells.

    tools/results.py add --name NAME --command COMMAND [--card cpu|gpu] [--engine pytorch] [--note TEXT] < LINES
                                    makes a file of what a command printed with --json, one line a round
    tools/results.py take ARCHIVE   takes the result files out of a results.tar.xz of tools/gpu_check.sh
    tools/results.py table          writes what the files give between the markers of both READMEs
    tools/results.py check          exit status 1 where a README says otherwise, or a file does not keep the form

--root DIR names another tree than the one that holds this script.
"""

import argparse
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tarfile

FOLDER = "benches/results"
# What stands between the markers of each.
READMES = {"README.md": ("cpu-steps", "cpu-alone", "gpu-steps"), FOLDER + "/README.md": ("list",)}
BLOCK = re.compile(r"(<!-- results: ([a-z-]+) -->\n)(.*?)(<!-- results end -->\n)", re.S)
KEYS = {
    "format": int,
    "card": dict,
    "commit": str,
    "dirty": bool,
    "date": str,
    "command": str,
    "engine": dict,
    "result": list,
}
CARDS = {"cpu": {"kind": str, "name": str, "cores": int}, "gpu": {"kind": str, "name": str, "driver": str, "cuda": str}}


class Wrong(Exception):
    """What does not keep the form, in words."""


def reject(constant):
    raise Wrong("%s is no number of JSON" % constant)


def fields(record, wanted, what):
    """That a record holds these fields of these types and no others."""
    for key in record.keys() - wanted.keys():
        raise Wrong("%s%s is not known: take it out" % (what, key))
    for key, kind in wanted.items():
        # A bool is an int to Python.
        if key not in record or not isinstance(record[key], kind) or (kind is int and isinstance(record[key], bool)):
            raise Wrong("%s%s must be there, as %s" % (what, key, kind.__name__))
        if kind is str and not record[key].strip():
            raise Wrong("%s%s is empty" % (what, key))


def check_record(record):
    """That a file's contents keep the form."""
    if not isinstance(record, dict):
        raise Wrong("it must be one object")
    fields({key: value for key, value in record.items() if key != "note"}, KEYS, "")
    if "note" in record and not isinstance(record["note"], str):
        raise Wrong("note must be text")
    if record["format"] != 1:
        raise Wrong("format %d is not known, 1 is" % record["format"])
    kind = record["card"].get("kind")
    if kind not in CARDS:
        raise Wrong("card.kind must be cpu or gpu")
    fields(record["card"], CARDS[kind], "card.")
    if not re.fullmatch("[0-9a-f]{7,40}", record["commit"]):
        raise Wrong("commit must be 7 to 40 hexadecimal digits")
    try:
        datetime.date.fromisoformat(record["date"])
    except ValueError:
        raise Wrong("date must be a day such as 2026-01-31") from None
    fields(record["engine"], {"name": str, "version": str}, "engine.")
    if record["engine"]["name"] not in ("saip-engine", "pytorch"):
        raise Wrong("engine.name must be saip-engine or pytorch")
    if not record["result"]:
        raise Wrong("result must hold at least one round")
    for one in record["result"]:
        if not isinstance(one, dict):
            raise Wrong("a round of result must be an object: what the command printed with --json")
        seconds = one.get("median_s", 1.0)
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, (int, float))
            or not (seconds > 0 and math.isfinite(seconds))
        ):
            raise Wrong("median_s must be a positive number")


def parse(text):
    try:
        record = json.loads(text, parse_constant=reject)
    except ValueError as error:
        raise Wrong("no JSON: %s" % error) from None
    check_record(record)
    return record


def files(root):
    """All result files by name, and what is wrong with those that cannot be used."""
    good, bad = {}, []
    folder = os.path.join(root, FOLDER)
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".json"):
            continue
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                good[name] = parse(file.read())
        except (Wrong, OSError, UnicodeError) as error:
            bad.append("%s/%s: %s" % (FOLDER, name, error))
    return good, bad


def line(cells):
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def place(card):
    """A card in words."""
    if card["kind"] == "cpu":
        return "%s, %d core%s" % (card["name"], card["cores"], "s" if card["cores"] > 1 else "")
    return "%s, driver %s, CUDA %s" % (card["name"], card["driver"], card["cuda"])


def commit(record):
    return record["commit"][:7] + (" with changes" if record["dirty"] else "")


class Step:
    """A result file of whole training steps."""

    def __init__(self, record):
        first = record["result"][0]
        self.record = record
        self.preset = first.get("preset") or "saip-%s" % first.get("case")
        self.batch = first.get("batch")
        how = "compiled" if first.get("compile") else "eager"
        self.engine = "ours" if record["engine"]["name"] == "saip-engine" else how
        self.rounds = [one["median_s"] for one in record["result"]]
        self.seconds = statistics.median(self.rounds)
        peaks = [one.get("peak_bytes", 0) / 2**30 or one.get("peak_gib", 0) for one in record["result"]]
        # What the engine tells of a GPU run is the host's memory.
        host = self.engine == "ours" and record["card"]["kind"] == "gpu"
        self.peak = None if host else max(peaks) or None


def steps(records, kind):
    """The newest steps on cards of a kind: by place, then by preset and batch, then by engine."""
    found = {}
    for name, record in records.items():
        if record["card"]["kind"] != kind or not all("median_s" in one for one in record["result"]):
            continue
        step = Step(record)
        engines = found.setdefault(place(record["card"]), {}).setdefault((step.preset, step.batch), {})
        other = engines.get(step.engine)
        if other and other.record["date"] == record["date"]:
            raise Wrong("%s/%s: another file of that day tells the same: keep one" % (FOLDER, name))
        if not other or other.record["date"] < record["date"]:
            engines[step.engine] = step
    return found


# In the order of the presets' list.
ORDER = ("saip-vit-tiny", "saip-tinyvit-5m", "saip-starnet-s3")


def ordered(rows):
    rank = lambda key: (ORDER.index(key[0]) if key[0] in ORDER else len(ORDER), key[0], key[1])
    return [(key, rows[key]) for key in sorted(rows, key=rank)]


def rounds(step, digits, scale=1.0):
    return ", ".join("%.*f" % (digits, scale * s) for s in step.rounds) if step else ""


def heading(engines):
    versions = sorted(
        {step.record["engine"]["version"] for row in engines for key, step in row.items() if key != "ours"}
    )
    return "PyTorch " + ", ".join(versions)


def commits(rows):
    return ", ".join(sorted({commit(row["ours"].record) for row in rows}))


def cpu_steps(records):
    """Ours beside the peer, where both were measured."""
    text = []
    for where, rows in steps(records, "cpu").items():
        both = [(key, row) for key, row in ordered(rows) if "ours" in row and "eager" in row]
        if not both:
            continue
        text += ["%s, commit %s:" % (where, commits(row for _, row in both)), ""]
        text += [
            line(
                [
                    "`--device cpu`",
                    "`saip-engine bench step`",
                    heading(row for _, row in both) + ", eager",
                    "times as fast",
                    "peak memory",
                ]
            )
        ]
        text += ["|---|---|---|---|---|"]
        for (preset, batch), row in both:
            ours, peer = row["ours"], row["eager"]
            peak = "%.2f against %.2f GiB" % (ours.peak, peer.peak) if ours.peak and peer.peak else ""
            text += [
                line(
                    [
                        "`--preset %s --batch %s`" % (preset, batch),
                        rounds(ours, 2),
                        rounds(peer, 2),
                        "%.1f" % (peer.seconds / ours.seconds),
                        peak,
                    ]
                )
            ]
    return text


def cpu_alone(records):
    """Ours, where the peer was not measured."""
    text = []
    for where, rows in steps(records, "cpu").items():
        alone = [(key, row["ours"]) for key, row in ordered(rows) if "ours" in row and len(row) == 1]
        for batch in sorted({batch for (_, batch), _ in alone}):
            each = ["%.1f s (`%s`)" % (step.seconds, preset) for (preset, size), step in alone if size == batch]
            told = "%s, commit %s" % (where, commits({"ours": step} for _, step in alone))
            text += ["By itself, a step of %d images takes %s: %s." % (batch, ", ".join(each), told)]
    return text


def gpu_steps(records):
    text = []
    for where, rows in steps(records, "gpu").items():
        ours = [(key, row) for key, row in ordered(rows) if "ours" in row]
        if not ours:
            continue
        text += [
            "" if text else None,
            "%s, commit %s; the median milliseconds of each round:" % (where, commits(row for _, row in ours)),
            "",
        ]
        peer = heading(row for _, row in ours)
        text += [
            line(
                [
                    "`--device cuda --dtype bf16`",
                    "`saip-engine bench step`",
                    peer + ", eager",
                    peer + ", compiled",
                    "times as fast",
                    "images/s",
                ]
            )
        ]
        text += ["|---|---|---|---|---|---|"]
        for (preset, batch), row in ours:
            mine, peers = row["ours"], [row[how] for how in ("eager", "compiled") if how in row]
            # Against the faster of both.
            ratio = "%.1f" % (min(p.seconds for p in peers) / mine.seconds) if peers else ""
            others = [rounds(row.get(how), 1, 1e3) for how in ("eager", "compiled")]
            text += [
                line(
                    [
                        "`--preset %s --batch %s`" % (preset, batch),
                        rounds(mine, 1, 1e3),
                        *others,
                        ratio,
                        "%.0f" % (batch / mine.seconds),
                    ]
                )
            ]
    return [t for t in text if t is not None] or ["No figure was taken on a GPU yet."]


def listing(records):
    text = [line(["file", "day", "commit", "on", "command", "median seconds"]), "|---|---|---|---|---|---|"]
    for name, record in records.items():
        taken = [one["median_s"] for one in record["result"] if "median_s" in one]
        engine = "" if record["engine"]["name"] == "saip-engine" else "PyTorch %s: " % record["engine"]["version"]
        text += [
            line(
                [
                    "[%s](%s)" % (name[:-5], name),
                    record["date"],
                    commit(record),
                    place(record["card"]),
                    "%s`%s`" % (engine, record["command"]),
                    ", ".join("%.4g" % s for s in taken),
                ]
            )
        ]
    return text


BLOCKS = {"cpu-steps": cpu_steps, "cpu-alone": cpu_alone, "gpu-steps": gpu_steps, "list": listing}


def filled(text, records, where):
    """A README with what the files give between its markers."""
    found = sorted(name for _, name, _, _ in BLOCK.findall(text))
    if found != sorted(READMES[where]):
        wanted = ", ".join(READMES[where])
        raise Wrong(
            "%s holds `<!-- results: NAME -->` ... `<!-- results end -->` for %s instead of %s"
            % (where, ", ".join(found) or "nothing", wanted)
        )
    put = lambda m: m.group(1) + "\n" + "\n".join(BLOCKS[m.group(2)](records)) + "\n\n" + m.group(4)
    return BLOCK.sub(put, text)


def update(root, only_check):
    """Writes both READMEs, or tells the first line of each that differs; gives what is wrong."""
    records, wrong = files(root)
    if wrong:
        return wrong
    for name in READMES:
        path = os.path.join(root, name)
        with open(path, encoding="utf-8") as file:
            old = file.read()
        try:
            new = filled(old, records, name)
        except Wrong as error:
            wrong.append(str(error))
            continue
        if new == old:
            continue
        if not only_check:
            write(path, new)
            print("%s written" % path)
            continue
        pairs = zip(old.splitlines() + [""], new.splitlines() + [""])
        at, (is_there, given) = next((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1])
        wrong.append(
            "%s:%d: says `%s`, but the files give `%s`: run tools/results.py table" % (name, at, is_there, given)
        )
    return wrong


def write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def asked(command):
    """What a command prints, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def this_card(kind):
    if kind == "gpu":
        found = asked(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]).splitlines()
        cuda = re.search(r"CUDA Version: *([\d.]+)", asked(["nvidia-smi"]))
        if not found or not cuda:
            raise Wrong("nvidia-smi names no card")
        name, driver = [part.strip() for part in found[0].split(",")]
        return {"kind": "gpu", "name": name, "driver": driver, "cuda": cuda.group(1)}
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = re.search(r"^model name\s*:\s*(.*)$", file.read(), re.M)
    return {"kind": "cpu", "name": name.group(1) if name else "unknown", "cores": len(os.sched_getaffinity(0))}


def add(root, args):
    result = [json.loads(text, parse_constant=reject) for text in sys.stdin if text.startswith("{")]
    if not result:
        raise Wrong("nothing to add: give what the command prints with --json, one line a round")
    version = next((one["torch"] for one in result if isinstance(one.get("torch"), str)), None)
    if args.engine != "pytorch":
        with open(os.path.join(root, "Cargo.toml"), encoding="utf-8") as file:
            version = re.search(r'^version = "(.*)"', file.read(), re.M).group(1)
    git = ["git", "-C", root]
    record = {"format": 1, "card": this_card(args.card), "commit": asked(git + ["rev-parse", "HEAD"])}
    record.update(
        dirty=bool(asked(git + ["status", "--porcelain"])), date=datetime.date.today().isoformat(), command=args.command
    )
    record.update(engine={"name": args.engine, "version": version or "unknown"}, result=result)
    if args.note:
        record["note"] = args.note
    keep(root, args.name, record)


def keep(root, name, record):
    """Writes a result file; one of that name is not replaced."""
    check_record(record)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise Wrong("%s: a name has letters, digits, '.', '_' and '-'" % name)
    path = os.path.join(root, FOLDER, name + ".json")
    if os.path.exists(path):
        raise Wrong("%s is there already: choose another name, or delete it" % path)
    write(path, json.dumps(record, indent=2) + "\n")
    print("%s written" % path)


def take(root, path):
    with tarfile.open(path) as archive:
        found = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".result.json")]
        if not found:
            raise Wrong("%s holds no *.result.json: only `gpu_check.sh run publish` makes them" % path)
        for member in found:
            text = archive.extractfile(member).read().decode("utf-8", "replace")
            keep(root, os.path.basename(member.name)[: -len(".result.json")], parse(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    what = parser.add_subparsers(dest="what", required=True)
    new = what.add_parser("add")
    new.add_argument("--name", required=True)
    new.add_argument("--command", required=True)
    new.add_argument("--card", choices=("cpu", "gpu"), default="cpu")
    new.add_argument("--engine", choices=("saip-engine", "pytorch"), default="saip-engine")
    new.add_argument("--note")
    what.add_parser("take").add_argument("archive")
    what.add_parser("table")
    what.add_parser("check")
    args = parser.parse_args()
    root = os.path.normpath(args.root)
    try:
        if args.what == "add":
            add(root, args)
        elif args.what == "take":
            take(root, args.archive)
        else:
            wrong = update(root, args.what == "check")
            if wrong:
                raise Wrong("\n".join(wrong))
    except (Wrong, OSError, ValueError, tarfile.TarError) as error:
        print(error, file=sys.stderr)
        return 1 if args.what == "check" else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
