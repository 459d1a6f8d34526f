#!/usr/bin/env python3
"""Ask a model about the strangers and print a Markdown table of what it answers.

python examples/strangers/ask.py [--model nano] [--downsample-mode 4x]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pocketvlm

HERE = Path(__file__).parent

#: (picture, question, what a person answers)
ASKED = (
    ("cafe", "What is the total?", "11.75"),
    ("cafe", "How much is the bread?", "2.40"),
    ("timetable", "What is the Pier of Otter?", "2"),
    ("timetable", "What is the Leaves of Puffin?", "13:05"),
    ("bars", "What is the value of Tue?", "52"),
    ("bars", "What colour is Wed?", "green"),
    ("sign", "What is written?", "GARAGE"),
    ("label", "What is on the first line?", "FRAGILE"),
    ("terminal", "What is on the second line?", "17:42 up 9 days"),
    ("article", "What is the last word?", "again."),
    ("login", "What does the City field say?", "Turin"),
    ("login", "Where is the Save button? Answer with a box.", "the blue button"),
    ("letter", "What is the title?", "Bicycle Day"),
    ("letter", "What is the serial?", "58-K"),
    ("photo", "What is written?", "nothing that could be read"),
)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="nano")
    cli.add_argument("--downsample-mode", default="4x")
    args = cli.parse_args()
    model = pocketvlm.load(args.model)
    print("| picture | question | a person | the model |\n| --- | --- | --- | --- |")
    for picture, question, expected in ASKED:
        file = next(HERE.glob(f"{picture}.[pj][np]g"))
        answer = model.ask(file, question, downsample_mode=args.downsample_mode, temperature=0.0)
        said = " ⏎ ".join(answer.text.splitlines())
        print(f"| {picture} | {question} | {expected} | {said} |")


if __name__ == "__main__":
    main()
