#!/usr/bin/env python3
"""What gpu_check.sh makes of the logs of its parts: the first error of each, a table, a summary, result files.

report.py tell RESULTS PART                    one line, and the first error of a part that failed
report.py save RESULTS ABOUT MODE SECONDS OUT  writes table.md, summary.json and results.tar.xz, each replaced whole
report.py result RESULTS ABOUT PART            prints PART.1, PART.2, ... as one result file (see tools/results.py)
report.py card RESULTS                         prints the name of the card
"""

import datetime
import json
import math
import os
import re
import signal
import sys
import tarfile

# Lines and characters of an error that are shown.
LINES, WIDTH = 6, 600
# Statuses of GNU timeout: the limit was reached, the command had to be killed.
CUT, KILLED = 124, 137
# Bytes of the archive, and of a log in it: what is longer loses its middle, more of it where all are too large.
ARCHIVE, LOGS = 15 << 20, (2 << 20, 256 << 10, 16 << 10)


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def parts(results):
    """Rows of parts.tsv: name, status, seconds, limit, command."""
    rows = []
    for line in read(os.path.join(results, "parts.tsv")).splitlines():
        name, status, seconds, limit, command = line.split("\t", 4)
        rows.append(
            {"part": name, "status": status, "seconds": float(seconds), "limit": float(limit), "command": command}
        )
    return rows


def state(row):
    status = row["status"]
    if status == "0":
        return "ok"
    words = {"no-time": "skipped (no time left)", "no-gpu": "no GPU", "absent": "skipped"}
    if status in words:
        return words[status]
    if int(status) in (CUT, KILLED) and row["seconds"] >= row["limit"] - 0.5:
        return "CUT after %g s" % row["limit"]
    if int(status) > 128:
        try:
            return "FAILED (%s)" % signal.Signals(int(status) - 128).name
        except ValueError:
            pass
    return "FAILED (%s)" % status


def failed(row):
    return state(row).startswith(("FAILED", "CUT"))


def tests_error(lines):
    """Of Rust's tests: the first that failed, with its message; else the one at which the process ended."""
    ended = [m for m in (re.match(r"test (\S+) (?:- .* )?\.\.\. FAILED", line) for line in lines) if m]
    # With --nocapture a test's own lines come before its verdict.
    if not ended:
        ended = [m for m in (re.match(r"---- (\S+) stdout ----", line) for line in lines) if m]
    panic = next((i for i, line in enumerate(lines) if re.match(r"thread '.*' .*panicked at ", line)), None)
    if ended:
        name = ended[0].group(1)
        head = "---- %s stdout ----" % name
        begin = lines.index(head) if head in lines else panic
        if begin is None:
            return [name + " failed without a message"]
        return [name] + message(lines[begin + (lines[begin] == head) :])
    if panic is not None:
        return message(lines[panic:])
    begun = [m for m in (re.match(r"test (\S+) \.\.\.\s*(.*)$", line) for line in lines) if m]
    open_ones = [m.group(1) for m in begun if m.group(2) not in ("ok", "ignored")]
    if open_ones:
        return ["ended in test " + open_ones[-1]] + [
            line for line in lines[-1:] if not re.match("test |running ", line)
        ]
    return []


def message(lines):
    """A panic's first lines, up to where the next thing begins."""
    end = next(
        (i for i, line in enumerate(lines) if re.match(r"---- |failures:|note: run with|stack backtrace|test ", line)),
        len(lines),
    )
    return lines[: min(end, LINES)]


def sanitizer_error(lines):
    """The sanitizer's first record."""
    of_tool = [line[len("=========") :].strip() for line in lines if line.startswith("=========")]
    first = next(
        (
            i
            for i, line in enumerate(of_tool)
            if re.match(
                r"(Invalid|Error|Warning: Race|Race|Misaligned|Program hit|Uninit|Internal|Target|Device not)", line
            )
        ),
        None,
    )
    return [] if first is None else of_tool[first : first + 4]


def verify_error(lines):
    """The fixture and its first tensors beyond the tolerance, or what kept it from running."""
    bad = [line for line in lines if re.search(r"\bBEYOND\b|\bERROR\b|^FAILED", line)]
    return ([lines[0]] if bad and lines[0] not in bad else []) + bad[:3]


def engine_error(lines):
    first = next((i for i, line in enumerate(lines) if re.match(r"(error|gpu_check):? ", line)), None)
    return [] if first is None else lines[first : first + LINES]


def python_error(lines):
    if not any(line.startswith("Traceback") for line in lines):
        return []
    last = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Timeout)\b", line)]
    return last[-1:]


def first_error(log):
    """The lines that tell what went wrong first: name, shape and numbers, not the last line."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ["nothing was printed"]
    for find in (tests_error, sanitizer_error, verify_error, engine_error, python_error):
        found = find(lines)
        if found:
            return found
    return lines[-1:]


def measured(results, name):
    """The lines of JSON that a part printed."""
    records = []
    for line in read(os.path.join(results, name + ".json")).splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            pass  # A line of a log that only begins like one.
    return [r for r in records if isinstance(r, dict)]


def figures(record):
    """A measurement in a line."""
    if "ops" in record:
        seconds, most = sum(op["seconds"] for op in record["ops"]), record["ops"][0]
        kinds = len(record["ops"])
        return "%.2f ms in %d kinds of ops, most in %s %s" % (1e3 * seconds, kinds, most["op"], most["shape"])
    loss = record["loss"]
    # JSON has no number for it.
    loss = "%.4f" % loss if isinstance(loss, float) and math.isfinite(loss) else "NOT FINITE"
    return "%.4f s a step, %.0f images/s, loss %s" % (record["median_s"], record["images_per_s"], loss)


def note(results, row):
    """What a part has to say, in a line or a few."""
    log = read(os.path.join(results, row["part"] + ".log"))
    if failed(row):
        return first_error(log)
    if row["status"] in ("no-gpu", "no-time"):
        return ["this machine has no NVIDIA GPU that can be used"] if row["status"] == "no-gpu" else [""]
    for record in measured(results, row["part"]):
        try:
            return [figures(record)]
        except (KeyError, TypeError, IndexError):
            pass  # An object that is no measurement.
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if row["part"] == "card" and card(results):
        return ["{name}, driver {driver}, CUDA {cuda}".format(**card(results))]
    told = [line for line in lines if re.match(r"test result:|passed:|========= ERROR SUMMARY|step \d|finished:", line)]
    return (told or lines or [""])[-1:]


def cell(lines):
    text = " / ".join(re.sub(r"\s+", " ", line.strip()) for line in lines)
    return (text[:WIDTH] + "..." if len(text) > WIDTH else text).replace("|", "\\|")


def tell(results, name):
    row = [row for row in parts(results) if row["part"] == name][-1]
    print("== %s: %s, %.1f s" % (name, state(row), row["seconds"]))
    if failed(row):
        for line in note(results, row):
            print("   " + line[:WIDTH])


def card(results):
    """What nvidia-smi told of the card: name, driver, CUDA; nothing where it was not asked."""
    log = read(os.path.join(results, "card.log")).splitlines()
    at = next((i for i, line in enumerate(log) if line.startswith("name, driver_version")), None)
    cuda = next((m.group(1) for m in (re.search(r"CUDA Version: *([\d.]+)", line) for line in log) if m), None)
    if at is None or at + 1 >= len(log):
        return None
    name, driver = [field.strip() for field in log[at + 1].split(",")[:2]]
    return {"kind": "gpu", "name": name, "driver": driver, "cuda": cuda or "unknown"}


def about(path):
    text = read(path)
    return json.loads(text) if text else {"commit": "unknown", "dirty": True}


def write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def table(record):
    """The summary as Markdown."""
    found = record["card"]
    named = "{name}, driver {driver}, CUDA {cuda}".format(**found) if found else "no card named"
    commit = record["commit"][:12] + (" with changes" if record["dirty"] else "")
    lines = ["%s on %s, commit %s, %g s" % (record["mode"], named, commit, record["seconds"]), ""]
    lines += ["| part | result | seconds | what it says |", "|---|---|---|---|"]
    rows = record["parts"]
    lines += [
        "| %s | %s | %.1f | %s |" % (row["part"], row["state"], row["seconds"], cell(row["note"])) for row in rows
    ]
    count = [
        sum(row["state"].startswith(begin) for row in rows) for begin in ("ok", "FAILED", "CUT", ("skipped", "no GPU"))
    ]
    lines += ["", "%d ok, %d failed, %d cut, %d not run" % tuple(count)]
    for row in rows:
        if failed(row):
            lines += ["", "%s: %s, `%s`" % (row["part"], row["state"], row["command"]), "```", *row["note"], "```"]
    return "\n".join(lines) + "\n"


def save(results, about_path, mode, seconds, out):
    packed = about(about_path)
    rows = [
        dict(row, state=state(row), note=note(results, row), result=measured(results, row["part"]))
        for row in parts(results)
    ]
    record = {"format": 1, "mode": mode, "card": card(results), "commit": packed["commit"], "dirty": packed["dirty"]}
    record.update(date=datetime.date.today().isoformat(), seconds=float(seconds), parts=rows)
    text = json.dumps(record, indent=1) + "\n"
    write(os.path.join(results, "summary.json"), text)
    write(os.path.join(out, "summary.json"), text)
    write(os.path.join(out, "table.md"), table(record))
    path = os.path.join(out, "results.tar.xz")
    for most in LOGS:
        shorten(results, most)
        with tarfile.open(path + ".new", "w:xz", preset=1) as archive:
            archive.add(results, "results")
        if os.path.getsize(path + ".new") <= ARCHIVE:
            break
    os.replace(path + ".new", path)


def shorten(results, most):
    for name in os.listdir(results):
        path = os.path.join(results, name)
        if not name.endswith(".log") or os.path.getsize(path) <= most:
            continue
        with open(path, "rb") as file:
            data = file.read()
        gap = b"\n... %d bytes left out ...\n" % (len(data) - most)
        with open(path, "wb") as file:
            file.write(data[: most // 2] + gap + data[-(most // 2) :])


def result(results, about_path, name):
    """One result file of all rounds of a part; exit status 1 where there is none."""
    rows = [
        row for row in parts(results) if re.fullmatch(re.escape(name) + r"\.\d+", row["part"]) and row["status"] == "0"
    ]
    rounds = [record for row in rows for record in measured(results, row["part"])[-1:]]
    found, packed = card(results), about(about_path)
    if not rounds or found is None:
        raise SystemExit(1)
    version = rounds[0].get("torch")
    engine = (
        {"name": "pytorch", "version": version}
        if version
        else {"name": "saip-engine", "version": packed.get("version", "unknown")}
    )
    # From the program's name on: where it lay there is no matter.
    command = re.sub(r"^.*?(saip-engine|saip_reference\.py) ", r"\1 ", rows[0]["command"])
    record = {"format": 1, "card": found, "commit": packed["commit"], "dirty": packed["dirty"]}
    record.update(date=datetime.date.today().isoformat(), command=command, engine=engine, result=rounds)
    print(json.dumps(record, indent=2))


def main(arguments):
    if arguments[:1] == ["tell"] and len(arguments) == 3:
        tell(*arguments[1:])
    elif arguments[:1] == ["save"] and len(arguments) == 6:
        save(*arguments[1:])
    elif arguments[:1] == ["result"] and len(arguments) == 4:
        result(*arguments[1:])
    elif arguments[:1] == ["card"] and len(arguments) == 2:
        print((card(arguments[1]) or {"name": "gpu"})["name"])
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
