#!/usr/bin/env bash
# pandas 3.1.1, read_csv with the heading Id,Text,Label and one row that has a comma too many.
#
# In the second row or later, the row raises ParserError: "Expected 3 fields, saw 4". In the first row the
# file is read without error or warning, and EVERY row is shifted: Id becomes the index, the column Id holds
# the text, the column Text holds the label, and Label is NaN in all rows but the first. The later rows were
# right, and are now wrong.
#
# One would guess that a bad row is refused wherever it stands (on_bad_lines="error" is the default, and the
# script even asks for it), or at least that only that row suffers. But the width of the first row alone
# decides that the file has an index column without a name.
#
# Why it matters: headlines have commas. A forgotten pair of quotes in the first one gives a classifier the
# labels as texts; index_col=False keeps the columns in place, cuts the long row short and warns.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import io
import sys
import warnings

import pandas as pd

good, bad = "2,Banks fall,1\n3,Shares rise,1\n", "1,Oil, gas and gold slip,0\n"


def read(rows, **options):
    return pd.read_csv(io.StringIO("Id,Text,Label\n" + rows), on_bad_lines="error", **options)


print("pandas", pd.__version__)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first = read(bad + good)
print(f"comma too many in the first row: no error, {len(caught)} warnings")
print(first.to_string())
try:
    read(good + bad)
    error = None
except pd.errors.ParserError as exception:
    error = exception
print("comma too many in the last row:", type(error).__name__, str(error).strip())
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    kept = read(bad + good, index_col=False)
print("index_col=False:", kept["Id"].tolist(), kept["Label"].tolist(), [w.category.__name__ for w in told])

shifted = first.index.tolist() == [1, 2, 3] and first["Id"].tolist()[1:] == ["Banks fall", "Shares rise"]
if not shifted or caught or error is None or not first["Label"].isna().tolist()[1:] == [True, True]:
    sys.exit("The behaviour has changed: what a comma too many does.")
if kept["Id"].tolist() != [1, 2, 3] or not told:
    sys.exit("The behaviour has changed: index_col=False.")
PY

# Output seen:
#
#   pandas 3.1.1
#   comma too many in the first row: no error, 0 warnings
#               Id                Text  Label
#   1          Oil   gas and gold slip    0.0
#   2   Banks fall                   1    NaN
#   3  Shares rise                   1    NaN
#   comma too many in the last row: ParserError Error tokenizing data. C error: Expected 3 fields in line 4, saw 4
#   index_col=False: [1, 2, 3] [' gas and gold slip', '1', '1'] ['ParserWarning']
