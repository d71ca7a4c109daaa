"""Make data/sample: small stand-ins for the course's files, so that every script runs at once.

    python data/make_sample.py

Everything is invented here, by numpy, Pillow and templates; nothing is cut from the course's data.
The same bytes come out on every run. Results on these files say only that the scripts work.
"""

import colorsys
import csv
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SAMPLE = Path(__file__).with_name("sample")

PLACES = "Arvenport Belmora Castrel Dunholt Eskavar Fenwick Galdana Harrowby Istria Jorvale".split()
PEOPLE = "Adler Brandt Castell Dorne Ekberg Farrow Grell Hallam Imber Jessop Kestrel Lorne".split()
FIRMS = "Axiom Bluepeak Corvid Deltaform Everline Foxglove Gridstone Hexalon".split()
TEAMS = "Badgers Comets Drakes Falcons Gulls Herons Jackals Lynxes".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
AGENCIES = ["(AP)", "(Reuters)", "(AFP)", ""]
WORDS = dict(place=PLACES, person=PEOPLE, firm=FIRMS, team=TEAMS, day=DAYS)

# Category -> (titles, sentences). A brace is filled from WORDS, {n} by a number.
NEWS = {
    1: (  # World
        """{place} leaders meet for peace talks
        Protest in {place} turns violent
        {person} sworn in as president of {place}
        Rebels seize border town near {place}
        {place} votes in disputed election
        Flood leaves {n} homeless in {place}
        {place} minister #39;s convoy attacked
        UN envoy {person} visits {place}""",
        """The foreign minister of {place} said on {day} that the ceasefire would hold.
        At least {n} people were killed when a bomb exploded in {place}, police said.
        Voters in {place} go to the polls on {day} after months of unrest.
        Aid workers reached {place} on {day}, {n} days after the earthquake.
        President {person} rejected a call by the United Nations to withdraw troops from {place}.
        Thousands marched through {place} against the new government.
        Soldiers freed {n} hostages held by militants, the army of {place} said.
        The parliament of {place} passed the law by {n} votes.""",
    ),
    2: (  # Sports
        """{team} beat {team} in overtime
        {person} scores twice as {team} win
        Injury keeps {person} out of {team} line-up
        {team} #39; coach {person} resigns
        {person} takes gold in {place}
        {team} sign {person} for {n} games
        Late goal sinks {team}
        {person} leads {place} Open after {n} holes""",
        """{person} scored {n} points and the {team} beat the {team} on {day} night.
        The {team} ended a losing streak of {n} games with a victory over {place}.
        Coach {person} said his quarterback would miss the season with a knee injury.
        {person} won the {place} marathon on {day} in a record time.
        The {team} take on the {team} in the final of the cup on {day}.
        A penalty in the {n}th minute gave the {team} the title.
        {person} hit a home run in the ninth inning as the {team} swept {place}.
        The league fined {person} for a foul in the match against {place}.""",
    ),
    3: (  # Business
        """{firm} profit rises {n} percent
        {firm} to buy {firm} for \\${n} million
        Oil prices climb above \\${n} a barrel
        Shares of {firm} fall on weak sales
        {firm} #39;s chief executive {person} steps down
        {place} central bank raises rates
        {firm} cuts {n} jobs
        Stocks open lower on {day}""",
        """{firm} said on {day} its quarterly profit rose {n} percent on strong sales.
        Shares in {firm} fell after the company cut its forecast for the year.
        The dollar slipped on {day} as investors waited for data on jobs.
        {firm} agreed to buy its rival {firm} in a deal worth \\${n} million.
        Oil prices rose on fears over supply from {place}, traders said.
        {person}, the chairman of {firm}, denied that the firm would file for bankruptcy.
        Consumer spending in {place} grew by {n} percent, the bank said.
        Regulators in {place} opened an inquiry into the accounts of {firm}.""",
    ),
    4: (  # Sci/Tech
        """{firm} unveils &lt;b&gt;new&lt;/b&gt; music player
        Virus spreads through {firm} software
        Scientists find water near {place}
        {firm} patches {n} security holes
        Probe sends pictures of Saturn moon
        {firm} quot;smart quot; phone goes on sale
        {person} develops faster chip
        Fossil found in {place} is {n} million years old""",
        """{firm} released an update to its browser on {day} that fixes {n} security holes.
        Researchers led by {person} have found a gene that lets mice live longer.
        The spacecraft entered orbit on {day} and sent {n} images to Earth.
        A worm that spreads by e-mail has infected computers in {place}.
        {firm} will sell a notebook with a wireless chip for \\${n}.
        Astronomers at {place} observatory have seen a planet around a distant star.
        The open source version of the {firm} server will run on Linux, developers said.
        Internet users in {place} can now search for video, {firm} said.""",
    ),
}


def make_news(rng, rows):
    """[(category, title, content)], classes in turn, then shuffled."""

    def fill(template):
        while "{" in template:
            name = template[template.index("{") + 1 : template.index("}")]
            word = str(rng.integers(2, 90)) if name == "n" else rng.choice(WORDS[name])
            template = template.replace("{" + name + "}", word, 1)
        return template

    def lines(text):
        return [line.strip() for line in text.splitlines()]

    news = []
    for i in range(rows):
        category = i % 4 + 1
        titles, sentences = (lines(part) for part in NEWS[category])
        # One text in eight carries a sentence of another class, as real news does.
        other = lines(NEWS[int(rng.integers(1, 5))][1]) if rng.random() < 0.125 else sentences
        agency = rng.choice(AGENCIES)
        title = f"{fill(rng.choice(titles))} {agency}".strip()
        content = f"{fill(rng.choice(other))} {fill(rng.choice(sentences))}"
        news.append((category, title, f"{agency.strip('()')} - {content}" if agency else content))
    return [news[i] for i in rng.permutation(rows)]


# Strokes of ten invented digits: lines through points of the unit square.
DIGITS = [
    [[(0.5, 0.1), (0.85, 0.35), (0.8, 0.75), (0.5, 0.9), (0.2, 0.7), (0.15, 0.35), (0.5, 0.1)]],
    [[(0.3, 0.2), (0.7, 0.2), (0.3, 0.85)], [(0.25, 0.5), (0.6, 0.5)]],
    [[(0.2, 0.15), (0.75, 0.2), (0.8, 0.45), (0.3, 0.5), (0.75, 0.9)]],
    [
        [(0.2, 0.15), (0.8, 0.15), (0.45, 0.45), (0.8, 0.65), (0.3, 0.9)],
        [(0.2, 0.45), (0.45, 0.45)],
    ],
    [[(0.25, 0.1), (0.2, 0.55), (0.85, 0.6)], [(0.6, 0.3), (0.6, 0.95)]],
    [[(0.8, 0.1), (0.25, 0.3), (0.75, 0.55), (0.2, 0.9)]],
    [[(0.7, 0.1), (0.25, 0.55), (0.3, 0.85), (0.7, 0.85), (0.7, 0.6), (0.3, 0.6)]],
    [[(0.15, 0.2), (0.5, 0.85), (0.85, 0.2)], [(0.3, 0.6), (0.7, 0.6)]],
    [[(0.2, 0.1), (0.2, 0.9), (0.8, 0.9), (0.8, 0.1)], [(0.2, 0.45), (0.8, 0.45)]],
    [[(0.75, 0.35), (0.45, 0.15), (0.25, 0.4), (0.55, 0.5), (0.75, 0.35), (0.65, 0.9)]],
]


def make_digits(rng, n):
    """(images uint8 (n, 28, 28), labels int64 (n,)): strokes, each point and the whole jittered."""
    images, labels = np.zeros((n, 28, 28), np.uint8), rng.integers(0, len(DIGITS), n)
    for image, label in zip(images, labels, strict=True):
        turn, width = rng.normal(0, 0.12), int(rng.integers(7, 14))
        matrix = np.array(
            [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        ) * rng.uniform(0.8, 1.05)
        canvas = Image.new("L", (140, 140))
        for stroke in DIGITS[label]:
            points = (np.array(stroke) - 0.5 + rng.normal(0, 0.025, (len(stroke), 2))) @ matrix
            points = [tuple(point) for point in points * 100 + 70 + rng.normal(0, 3, 2)]
            ImageDraw.Draw(canvas).line(points, fill=255, width=width, joint="curve")
        image[:] = np.asarray(
            canvas.filter(ImageFilter.BoxBlur(2)).resize((28, 28), Image.Resampling.BOX)
        )
    return images, labels


def make_face(rng):
    """A drawn face, RGB 64 x 64: hair, skin, eyes, mouth, each of its own colour and place."""

    def colour(hue, saturation, value):
        return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))

    def ellipse(x, y, width, height, fill):
        draw.ellipse(
            [2 * (x - width), 2 * (y - height), 2 * (x + width), 2 * (y + height)], fill=fill
        )

    hue, tone, eye = rng.random(), rng.uniform(0.75, 1), rng.random()
    x, y, wide, look = (
        rng.normal(32, 1.5),
        rng.normal(36, 1.5),
        rng.normal(17, 1.2),
        rng.normal(0, 1.2),
    )
    canvas = Image.new(
        "RGB", (128, 128), colour(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.8, 1))
    )
    draw = ImageDraw.Draw(canvas)
    hair, shade = colour(hue, 0.6, tone), colour(hue, 0.7, tone * 0.8)
    ellipse(x, y - 4, wide + 9, 26, shade)
    if rng.random() < 0.5:  # long hair
        draw.rectangle([2 * (x - wide - 7), 2 * y, 2 * (x + wide + 7), 128], fill=shade)
    draw.rectangle(
        [2 * (x - 5), 2 * (y + 12), 2 * (x + 5), 128], fill=colour(0.07, 0.3, tone * 0.9)
    )
    ellipse(x, y, wide, 20, colour(0.07, rng.uniform(0.12, 0.3), tone))
    for side in (-1, 1):
        place = x + side * wide / 2
        ellipse(place, y + 2, 5, 5.5, "white")
        ellipse(place + look, y + 2.5, 3.5, 4.5, colour(eye, 0.7, 0.7))
        ellipse(place + look, y + 3, 1.8, 2.5, "black")
        ellipse(place + look - 1, y + 1, 1, 1, "white")
        draw.line([2 * (place - 5), 2 * (y - 4), 2 * (place + 5), 2 * (y - 5)], fill=shade, width=3)
    smile = rng.uniform(1, 4)
    draw.chord(
        [2 * (x - 4), 2 * (y + 12 - smile), 2 * (x + 4), 2 * (y + 12 + smile)],
        0,
        180,
        fill=colour(0, 0.6, 0.8),
    )
    fringe = [
        (2 * (x + wide * (i / 4 - 1)), 2 * (y - 7 - (i % 2) * rng.uniform(3, 8))) for i in range(9)
    ]
    draw.polygon(
        [(2 * (x - wide - 2), 2 * (y - 24)), *fringe, (2 * (x + wide + 2), 2 * (y - 24))], fill=hair
    )
    return canvas.resize((64, 64), Image.Resampling.BOX)


def write_faces(rng, n):
    """anime-faces.zip: n drawn faces, as PNG in the folder data, as in the course's file."""
    with zipfile.ZipFile(SAMPLE / "anime-faces.zip", "w") as archive:
        for i in range(n):
            png = io.BytesIO()
            make_face(rng).save(png, "PNG", optimize=True)
            archive.writestr(
                zipfile.ZipInfo(f"data/{i + 1}.png"), png.getvalue()
            )  # dated 1980, always


def write_csv(name, heading, rows):
    """With a byte-order mark, as the course's files have."""
    with open(SAMPLE / name, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([heading, *rows])


def main():
    SAMPLE.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    train, test = make_news(rng, 480), make_news(rng, 96)
    write_csv(
        "train.csv",
        ("Id", "Category", "Title", "Description"),
        [(i, *row) for i, row in enumerate(train, 1)],
    )
    write_csv(
        "test.csv", ("Id", "Title", "Description"), [(i, *row[1:]) for i, row in enumerate(test, 1)]
    )
    images, labels = make_digits(np.random.default_rng(1), 2000)
    np.savez_compressed(SAMPLE / "TibetanMNIST.npz", image=images, label=labels)
    write_faces(np.random.default_rng(2), 1000)


if __name__ == "__main__":
    main()
