#!/usr/bin/env bash
# typst 0.15.2 (the Python package of the Typst compiler), a look-up by a negative number.
#
# In Typst str(-1) == "-1" is false: str puts the typographic minus sign in front of a negative number, as on
# the page, not the hyphen that every data format uses. repr(-1) has the hyphen, and int() reads both, so
# int("-1") and int(str(-1)) are equal although the texts are not.
#
# One would guess that str gives the text that one would type, as it does for 0 and 1.
#
# Why it matters: Python writes the counts of the classes -1, 0 and 1 (negative, neutral, positive) as a JSON
# object. In the report counts.at(str(class), default: 0) finds 0 and 1, and prints 0 for class -1 without
# an error. Nothing looks wrong but the figure.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check typst==0.15.2
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import json
import pathlib
import sys

import typst

pathlib.Path("counts.json").write_text(json.dumps({-1: 31, 0: 52, 1: 17}))
pathlib.Path("report.typ").write_text(
    """
#let counts = json("counts.json")
#let classes = (-1, 0, 1)
#metadata((
  by-str: classes.map(c => counts.at(str(c), default: 0)),
  by-repr: classes.map(c => counts.at(repr(c), default: 0)),
  equal: classes.map(c => str(c) == repr(c)),
  text: str(-1),
  read: (int("-1"), int(str(-1))),
)) <seen>
"""
)
seen = json.loads(typst.query("report.typ", "<seen>", field="value", one=True))
print("typst", importlib.metadata.version("typst"))
print("counts.json:                  ", pathlib.Path("counts.json").read_text())
print("counts of -1, 0, 1 by str(c): ", seen["by-str"])
print("counts of -1, 0, 1 by repr(c):", seen["by-repr"])
print("str(c) == repr(c):            ", seen["equal"])
print("str(-1) in Python's escapes:  ", ascii(seen["text"]))
print('int("-1"), int(str(-1)):      ', seen["read"])
if (
    seen["by-str"] != [0, 52, 17]
    or seen["by-repr"] != [31, 52, 17]
    or seen["equal"] != [False, True, True]
    or seen["read"] != [-1, -1]
):
    sys.exit("The behaviour has changed: str of a negative number in Typst.")
PY

# Output seen:
#
#   typst 0.15.2
#   counts.json:                   {"-1": 31, "0": 52, "1": 17}
#   counts of -1, 0, 1 by str(c):  [0, 52, 17]
#   counts of -1, 0, 1 by repr(c): [31, 52, 17]
#   str(c) == repr(c):             [False, True, True]
#   str(-1) in Python's escapes:   '\u22121'
#   int("-1"), int(str(-1)):       [-1, -1]
