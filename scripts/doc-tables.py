#!/usr/bin/env python3
"""Holds the tables in README.md and docs/ to what the programs of this repository print.

    python3 scripts/doc-tables.py [--write] [--cuda]

A fenced block or a table under `<!-- output of: COMMAND -->` is what that shell command prints, line for line; `finegrain`
in it is the release build, $ROOT this repository. Each is compared and its first difference shown; --write puts the output
in its place. Those under `<!-- output with shared of: COMMAND -->` need ../shared, where `layers.safetensors` is
data/minilm-layers.safetensors and tests find their golden values; without it they are left out and named. Those under
`<!-- output with cuda of: COMMAND -->` need NVRTC and are looked at with --cuda alone.
Fails if one differs, a command fails or none is found.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
SHARED = pathlib.Path(os.environ.get("FINEGRAIN_SHARED", ROOT.parent / "shared")).resolve()
MARK = r"<!-- output (?:with (?P<needs>shared|cuda) )?of: (?P<command>[^\n]*?) -->\n"
FENCED = re.compile(rf"(?P<head>{MARK}```\w*\n)(?P<body>.*?)(?P<tail>^```$)", re.S | re.M)
TABLE = re.compile(rf"(?P<head>{MARK}\n)(?P<body>(?:\|.*\n?)+)(?P<tail>)")


def output(command, folder):
    """What a command prints, with the release build first on the path."""
    path = f"{TARGET / 'release'}:{TARGET / 'release/examples'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "ROOT": str(ROOT), "CARGO_TARGET_DIR": str(TARGET)}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if run.returncode != 0:
        sys.exit(f"{command}: exit status {run.returncode}\n{run.stderr}")
    return "".join(line.rstrip() + "\n" for line in run.stdout.splitlines())


def difference(kept, fresh):
    """The first line that differs."""
    kept, fresh = kept.splitlines(), fresh.splitlines()
    for at in range(max(len(kept), len(fresh))):
        old, new = (lines[at] if at < len(lines) else "(no line)" for lines in (kept, fresh))
        if old != new:
            return f"line {at + 1}:\n  it says {old}\n  printed {new}"
    return None


def main():
    options = set(sys.argv[1:])
    if options - {"--write", "--cuda"}:
        sys.exit(__doc__)
    write, cuda = "--write" in options, "--cuda" in options
    compared, different = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(SHARED / "data/minilm-layers.safetensors", pathlib.Path(folder) / "layers.safetensors")
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
            name = page.relative_to(ROOT)

            def renewed(block):
                nonlocal compared, different
                command = block["command"]
                if (block["needs"] == "cuda") != cuda:
                    return block[0]
                if block["needs"] == "shared" and not SHARED.is_dir():
                    print(f"{name}: {command}: left out, {SHARED} is not there")
                    return block[0]
                fresh = output(command, folder)
                compared += 1
                if found := difference(block["body"], fresh):
                    different += 1
                    print(f"{name}: {command}: {found}")
                return block["head"] + fresh + block["tail"]

            text = page.read_text()
            fresh = TABLE.sub(renewed, FENCED.sub(renewed, text))
            if write and fresh != text:
                page.write_text(fresh)
    print(f"{compared} tables compared with what the programs print, {different} differed")
    sys.exit(compared == 0 or (different > 0 and not write))


main()
