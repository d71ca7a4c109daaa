#!/usr/bin/env bash
# nltk 3.10.4, NaiveBayesClassifier with word counts as features.
#
# 10 texts on sport name "goal" once or twice, 90 on money name "bank" once or twice. A text that says "bank" three
# times, a count that training never saw, is taken for sport more readily than a text that says nothing at all:
# the probability of sport rises from 0.10 to 0.48. A third "goal" lowers it, from 0.91 to the same 0.48. A word
# that training never saw at all ("tennis") is left out and changes nothing.
#
# One would guess that three is more than two, or that an unseen count is left out like an unseen word. But a
# count is a name here, no amount, and an unseen name of a known word is smoothed in each class. The same half
# observation is a larger part of 10 texts than of 90, so it speaks for the class with the fewer texts.
#
# Why it matters: long texts have counts that short training texts have not, and each of them pushes a naive Bayes
# baseline towards the rarest class. Features that are only ever True do not have the trouble.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check nltk==3.10.4
"$dir/venv/bin/python" - <<'PY'
import sys

import nltk

rows = [({"goal": 1 + i % 2}, "sport") for i in range(10)] + [({"bank": 1 + i % 2}, "money") for i in range(90)]
model = nltk.NaiveBayesClassifier.train(rows)
texts = [{}, {"tennis": 3}, {"goal": 1}, {"goal": 2}, {"goal": 3}, {"bank": 1}, {"bank": 2}, {"bank": 3}]
print("nltk", nltk.__version__)
sport = {}
for text in texts:
    sport[str(text)] = model.prob_classify(text).prob("sport")
    print(f"{str(text):14} probability of sport {sport[str(text)]:.3f}")
nothing, tennis, _, goal2, goal3, _, bank2, bank3 = sport.values()
if tennis != nothing or not bank2 < nothing < bank3 / 3 or not goal3 < goal2 - 0.3:
    sys.exit("The behaviour has changed: what an unseen count does.")
PY

# Output seen:
#
#   nltk 3.10.4
#   {}             probability of sport 0.104
#   {'tennis': 3}  probability of sport 0.104
#   {'goal': 1}    probability of sport 0.910
#   {'goal': 2}    probability of sport 0.910
#   {'goal': 3}    probability of sport 0.480
#   {'bank': 1}    probability of sport 0.010
#   {'bank': 2}    probability of sport 0.010
#   {'bank': 3}    probability of sport 0.480
