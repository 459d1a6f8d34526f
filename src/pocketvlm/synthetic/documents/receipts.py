"""Simple receipts: a shop, a date, a few items with prices, and a total that is the sum of what stands above it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketvlm.synthetic.documents.json_questions import Value, ask_fields
from pocketvlm.synthetic.drawing.fonts import families
from pocketvlm.synthetic.drawing.lines import Colour, blend, draw_background, rotate, wear
from pocketvlm.synthetic.drawing.paper import Fonts, Row, fit_sheet, print_sheet, set_sheet
from pocketvlm.synthetic.levels import PrintedLevel, draw_size, exactly, no_room
from pocketvlm.synthetic.sample import Question, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import (
    DATE_FORMS,
    Wordings,
    ask,
    ask_absent,
    draw_day,
    format_date,
    one_of,
    until_in_split,
)
from pocketvlm.synthetic.words.vocabulary import draw_text, in_split

_ITEMS = (
    "Coffee|Tea|Green Tea|Milk|Water|Juice|Lemonade|Cola|Latte|Mocha|Espresso|Soup|Salad|Toast|Bagel|Muffin|Croissant|"
    "Scone|Cookie|Brownie|Donut|Cake|Apple Pie|Pancakes|Waffle|Sandwich|Burger|Fries|Pizza|Pasta|Rice|Noodles|Curry|"
    "Taco|Burrito|Fish|Chicken|Steak|Ham|Bacon|Eggs|Omelette|Cheese|Butter|Bread|Rolls|Yogurt|Honey|Jam|Sugar|Salt|"
    "Flour|Apples|Bananas|Oranges|Grapes|Lemons|Tomatoes|Potatoes|Onions|Carrots|Beans|Mushrooms|Olives|Chips|Nuts|"
    "Candy|Chocolate|Ice Cream|Soap|Shampoo|Towels|Batteries|Candle|Notebook|Pencil|Pen|Envelope|Stamps|Book|Magazine|"
    "Newspaper|Umbrella|Socks|Gloves|Light Bulb|Tape|Glue|Flowers|Plant"
)
ITEMS = tuple(_ITEMS.split("|"))
_KINDS = "Cafe|Bakery|Market|Shop|Store|Diner|Deli|Grill|Bistro|Books|Foods|Kitchen|Pharmacy|Garden|Bar"
KINDS = tuple(_KINDS.split("|"))
THANKS = ("Thank you!", "THANK YOU", "Thanks for your visit", "Please come again", "Have a nice day!")
TOTALS = ("TOTAL", "TOTAL", "TOTAL:", "Total", "TOTAL DUE")
TRAIN_LAYOUTS = ("centred", "left", "dotted", "open")
HELDOUT_LAYOUTS = ("ruled", "date last")
TABLES: tuple[Colour, ...] = ((120, 80, 50), (60, 70, 90), (150, 150, 150), (40, 90, 70), (180, 140, 100), (30, 30, 30))

TOTAL_QUESTIONS = Wordings(
    (
        "What is the total?",
        "How much is the total?",
        "What is the total amount?",
        "Read the total.",
        "What's the total",
        "total?",
    ),
    heldout=("How much did it cost in all?", "Give me the total.", "Total"),
)
ITEM_QUESTIONS = Wordings(
    (
        "What is the price of the {name}?",
        "How much is the {name}?",
        "How much does the {name} cost?",
        "Price of {name}?",
        "price of the {name}",
    ),
    heldout=("How much was paid for the {name}?", "{name}: price?"),
)
SHOP_QUESTIONS = Wordings(
    (
        "What is the name of the shop?",
        "What is the shop name?",
        "Which shop is this receipt from?",
        "What's the shop called",
        "shop?",
    ),
    heldout=("Where was this bought?", "name of the shop"),
)
DATE_QUESTIONS = Wordings(
    ("What is the date?", "What is the date on the receipt?", "When was this bought?", "Read the date.", "date?"),
    heldout=("Give me the date.", "date of purchase?", "On which day was it bought?"),
)
COUNT_QUESTIONS = Wordings(
    (
        "How many items are on the receipt?",
        "How many items were bought?",
        "What is the number of items?",
        "how many items",
    ),
    heldout=("Count the items.", "number of items?"),
)
QUANTITY_QUESTIONS = Wordings(
    ("What is the quantity of {name}?", "How many {name} were bought?", "quantity of {name}?"),
    heldout=("{name}: how many?", "How many {name} are on the receipt?"),
)
SUBTOTAL_QUESTIONS = Wordings(
    ("What is the subtotal?", "How much is the subtotal?", "Read the subtotal.", "subtotal?"),
    heldout=("What's the subtotal", "How much is it before tax?"),
)
TAX_QUESTIONS = Wordings(
    ("What is the tax?", "How much is the tax?", "Read the tax.", "tax?"),
    heldout=("What's the tax", "How much of it is tax?"),
)
YEARS = (2015, 2034)
ABSENT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Item:
    """A line of a receipt: `cents` is the price of the whole line, a multiple of the quantity."""

    name: str
    cents: int
    quantity: int = 1


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receipt says. `tax_cents` is None where no tax is printed."""

    shop: str
    items: tuple[Item, ...]
    date: str = ""
    tax_cents: int | None = None
    currency: str = ""
    thanks: str = ""
    has_subtotal: bool = False

    @property
    def subtotal_cents(self) -> int:
        return sum(item.cents for item in self.items)

    @property
    def total_cents(self) -> int:
        return self.subtotal_cents + (self.tax_cents or 0)

    def price(self, cents: int) -> str:
        """An amount as it is printed."""
        return f"{self.currency}{cents // 100}.{cents % 100:02d}"


@dataclass(frozen=True, slots=True)
class Style:
    """How a receipt is laid out: its family, the size of the shop's name relative to the rest, and the wording.

    Families: "centred", "left" (the shop at the left edge), "dotted" (dots lead to the prices), "open" (no rules),
    "ruled" (a rule above every item), "date last".
    """

    layout: str = "centred"
    scale: float = 1.2
    upper_items: bool = False
    total: str = "TOTAL"

    def cased(self, item: str) -> str:
        """An item in the letters that it is printed in."""
        return item.upper() if self.upper_items else item


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptLevel(PrintedLevel):
    """How hard the receipts are.

    Attributes:
        items: fewest and most items.
        extras: probability of each optional part: date, tax, subtotal, quantities, thanks.
        degrees: largest rotation to either side.
    """

    items: tuple[int, int]
    extras: float
    degrees: float = 0.0


RECEIPT_LEVELS: tuple[ReceiptLevel, ...] = (
    # Large print, few lines, one view of a model that sees 224 pixels: still readable when scaled to that.
    ReceiptLevel(
        sizes=(exactly(224, 224), exactly(280, 168), ((224, 336), (224, 280))),
        items=(2, 3),
        font_pixels=(17, 30),
        extras=0.35,
        variety=0.3,
        wear=0.2,
    ),
    ReceiptLevel(
        sizes=(((280, 420), (224, 300)),),
        items=(3, 6),
        font_pixels=(13, 24),
        extras=0.6,
        variety=0.6,
        wear=0.5,
        degrees=1.5,
    ),
)


def draw_receipt(rng: np.random.Generator, level: ReceiptLevel, split: Split, task: str = "receipt") -> Sample:
    """A picture of a receipt of `level`. Shop words, asked amounts and dates, and fonts are all from `split`."""
    height, width = draw_size(rng, level.sizes)
    on_table = rng.random() < level.variety * 0.5
    edge = int(rng.integers(4, 13)) if on_table else 0
    inner = edge + int(rng.integers(5, 12))
    leading_em = float(rng.uniform(1.25, 1.5))
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    for attempt in range(200):
        if attempt == 50:  # a wide table around narrow paper can leave too little: lay the receipt close to the edges
            edge, inner, leading_em = 0, 5, 1.25
        receipt = draw_contents(rng, level, split)
        family = one_of(rng, families(split))
        style = Style(
            layout=layout,
            scale=float(rng.uniform(1.0, 1.3)),
            upper_items=bool(rng.random() < 0.25),
            total=one_of(rng, TOTALS),
        )
        rows = lay_out(receipt, style)
        largest = int(rng.integers(level.font_pixels[0], level.font_pixels[1] + 1))
        fonts = Fonts(family.regular, family.bold)
        sheet = fit_sheet(
            rows, fonts, (level.font_pixels[0], largest), leading_em, width - 2 * inner, height - 2 * inner
        )
        if sheet:
            break
    else:
        raise no_room("receipt", level, height, width)

    # Rows spread out to fill long paper, as far as looks natural.
    spread = min(1.3, (height - 2 * inner) / sheet.height)
    sheet = set_sheet(rows, fonts, sheet.pixels, max(leading_em, leading_em * spread * 0.99))
    ink = np.zeros((height, width), np.uint8)
    top = inner + int(rng.integers(0, height - 2 * inner - sheet.height + 1)) // 2
    boxes = print_sheet(sheet, ink, inner, top, width - 2 * inner, dotted=layout == "dotted")
    paper = np.zeros((height, width), np.uint8)
    paper[edge : height - edge, edge : width - edge] = 255
    if level.degrees and rng.random() < 0.5:
        degrees = float(rng.uniform(-level.degrees, level.degrees))
        turned, moved = rotate(ink, boxes, degrees, margin=edge + 2)
        if moved is not boxes:
            ink, boxes = turned, moved
            paper = rotate(paper, [], degrees)[0] if on_table else paper

    shade = int(rng.integers(0, 22)) if rng.random() < level.variety else 0
    cream = int(rng.integers(0, 30)) if rng.random() < level.variety * 0.5 else 0
    dark = int(rng.integers(0, 70)) if rng.random() < level.variety else 0
    table = one_of(rng, TABLES)
    image = draw_background(rng, height, width, table, level.variety if on_table else 0.0)
    image = blend(image, paper, (255 - shade, 255 - shade, 255 - shade - cream))
    image = wear(rng, blend(image, ink, (dark, dark, dark)), level.wear)
    questions = (*ask_about(rng, receipt, split), *ask_fields(rng, split, json_fields(receipt, style)))
    return Sample((np.ascontiguousarray(image),), questions, task, (tuple(boxes),), layout=layout)


def draw_contents(rng: np.random.Generator, level: ReceiptLevel, split: Split) -> Receipt:
    """What a receipt of `level` says; its total belongs to `split`."""

    def happens(share: float) -> bool:
        return bool(rng.random() < share)

    words = [draw_text(rng, "word", split, max_length=8).lower().capitalize() for _ in range(1 + happens(0.4))]
    shop = " ".join([*words, one_of(rng, KINDS)])
    shop = shop.upper() if happens(0.5) else shop
    date = _draw_date(rng, split) if happens(level.extras) else ""
    currency = "$" if happens(0.4) else ""
    thanks = one_of(rng, THANKS) if happens(level.extras * 0.4) else ""
    has_tax, has_subtotal, has_quantities = happens(level.extras * 0.6), happens(0.5), happens(level.extras * 0.5)
    count = int(rng.integers(level.items[0], level.items[1] + 1))
    names = [ITEMS[i] for i in rng.choice(len(ITEMS), count, replace=False)]
    while True:
        items = []
        for name in names:
            quantity = int(rng.integers(2, 6)) if has_quantities and happens(0.4) else 1
            items.append(Item(name, _draw_price(rng) * quantity, quantity))
        subtotal = sum(item.cents for item in items)
        # Half a cent and more is rounded up, in integers.
        tax = (subtotal * int(rng.integers(4, 21)) + 50) // 100 if has_tax else None
        receipt = Receipt(shop, tuple(items), date, tax, currency, thanks, has_tax and has_subtotal)
        if in_split(receipt.price(receipt.total_cents), split):
            return receipt


def lay_out(receipt: Receipt, style: Style) -> list[Row]:
    """The rows of `receipt` in `style`."""
    centred, has_rules = style.layout != "left", style.layout != "open"
    date = [Row(receipt.date, centred=centred)] if receipt.date else []
    rows = [Row(receipt.shop, bold=True, centred=centred, scale=style.scale)]
    if style.layout != "date last":
        rows += date
    has_quantities = any(item.quantity > 1 for item in receipt.items)
    for i, item in enumerate(receipt.items):
        name = style.cased(f"{item.quantity} x {item.name}" if has_quantities else item.name)
        rows.append(Row(name, receipt.price(item.cents), rule=has_rules and (i == 0 or style.layout == "ruled")))
    if receipt.has_subtotal:
        rows.append(Row("Subtotal", receipt.price(receipt.subtotal_cents), rule=has_rules))
    if receipt.tax_cents is not None:
        rows.append(Row("Tax", receipt.price(receipt.tax_cents), rule=has_rules and not receipt.has_subtotal))
    rows.append(Row(style.total, receipt.price(receipt.total_cents), bold=True, rule=has_rules, scale=1.1))
    if style.layout == "date last":
        rows += date
    if receipt.thanks:
        rows.append(Row(receipt.thanks, centred=centred))
    return rows


def ask_about(rng: np.random.Generator, receipt: Receipt, split: Split) -> tuple[Question, ...]:
    """Questions on `receipt`, the total first. Amounts and dates that belong to the other split are not asked for. A
    quarter of the receipts are also asked about something that is not there.
    """
    questions = [
        ask(rng, split, TOTAL_QUESTIONS, receipt.price(receipt.total_cents)),
        ask(rng, split, SHOP_QUESTIONS, receipt.shop),
    ]
    amounts = []
    for item in receipt.items:
        name = item.name.lower()
        # The printed amount is that of the line: for several pieces "the price" would be ambiguous.
        if item.quantity == 1:
            amounts.append(ask(rng, split, ITEM_QUESTIONS, receipt.price(item.cents), name=name))
        else:
            questions.append(ask(rng, split, QUANTITY_QUESTIONS, str(item.quantity), name=name))
    if all(item.quantity == 1 for item in receipt.items):
        questions.append(ask(rng, split, COUNT_QUESTIONS, str(len(receipt.items))))
    if receipt.has_subtotal:
        amounts.append(ask(rng, split, SUBTOTAL_QUESTIONS, receipt.price(receipt.subtotal_cents)))
    if receipt.tax_cents is not None:
        amounts.append(ask(rng, split, TAX_QUESTIONS, receipt.price(receipt.tax_cents)))
    if receipt.date:
        questions.append(ask(rng, split, DATE_QUESTIONS, receipt.date))
    questions += [question for question in amounts if in_split(question.answer, split)]
    if rng.random() < ABSENT_SHARE:
        questions.append(_ask_absent(rng, receipt, split))
    return tuple(questions)


def _ask_absent(rng: np.random.Generator, receipt: Receipt, split: Split) -> Question:
    """A question about an item, or a part, that is not on the receipt, in the words of those that have an answer."""
    bought = {item.name for item in receipt.items}
    groups = [ITEM_QUESTIONS, ITEM_QUESTIONS]
    if receipt.tax_cents is None:
        groups.append(TAX_QUESTIONS)
    if not receipt.date:
        groups.append(DATE_QUESTIONS)
    other = one_of(rng, [item for item in ITEMS if item not in bought])
    return ask_absent(rng, split, one_of(rng, groups), name=other.lower())


def json_fields(receipt: Receipt, style: Style) -> dict[str, Value]:
    """What `receipt` says, as it is printed in `style`."""
    return {
        "shop": receipt.shop,
        "date": receipt.date or None,
        "items": [{"name": style.cased(item.name), "price": receipt.price(item.cents)} for item in receipt.items],
        "total": receipt.price(receipt.total_cents),
    }


def _draw_price(rng: np.random.Generator) -> int:
    """A price in cents: 0.50 to about 30, often ending as shops like it."""
    whole = int(np.exp(rng.uniform(np.log(1), np.log(30))))
    endings = (0, 25, 50, 75, 90, 95, 99)
    cents = one_of(rng, endings) if rng.random() < 0.6 else int(rng.integers(100))
    return max(50, whole * 100 + cents)


def _draw_date(rng: np.random.Generator, split: Split) -> str:
    return until_in_split(rng, split, lambda rng: format_date(draw_day(rng, YEARS), one_of(rng, DATE_FORMS)))
