"""The picture of a tile: panels in two columns, each below a sentence that says what it shows. Drawn without a display.

Lengths are inches from the left and the top; at 900 pixels in width the smallest letters are 9 pixels high.
"""
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tables.pictures import BLUE, ORANGE
from utils.files import written_whole
from views.colours import bands_to_draw, drawn, stretch_of

WIDTH, EDGE, LEFT, RIGHT = 11, 0.2, 4.5, 5.75    # of the page, its margin, the columns
SMALL, TEXT = 8, 8.5           # letters, points
A_ROW = 25                     # dates
LINE = 1.6                     # of a frame, points
CURVES = 4                     # bands of a series, spread evenly over its list
TILES_A_ROW, BAR_COLUMNS = 6, 4
SIMILAR = "RdBu_r"             # colours that the colour-blind tell apart


class Page:
    """A figure that is filled from the top; its height is known at the end."""

    def __init__(self):
        self.figure, self.places = Figure(dpi=160), []
        FigureCanvasAgg(self.figure)

    def panel(self, left, top, width, height):
        """Axes without ticks."""
        axes = self.figure.add_axes((0, 0, 1, 1), label=str(len(self.places)), xticks=[], yticks=[])
        self.places.append((axes, left, top, width, height))
        return axes

    def text(self, left, top, text, size=TEXT, **options):
        """Text whose top left corner is there."""
        found = self.figure.text(0, 0, text, size=size, **{"va": "top"} | options)
        self.places.append((found, left, top, 0, 0))

    def heading(self, left, top, width, name, text):
        """A panel's name and what it shows. Returns the height."""
        lines = textwrap.wrap(text, int(width * 17))
        self.text(left, top, name, 10, weight="bold")
        self.text(left, top + 0.19, "\n".join(lines), color="0.25", linespacing=1.15)
        return 0.27 + 0.14 * len(lines)

    def save(self, path, height):
        self.figure.set_size_inches(WIDTH, height)
        for what, left, top, width, high in self.places:
            bottom = 1 - (top + high) / height
            if high:
                what.set_position((left / WIDTH, bottom, width / WIDTH, high / height))
            else:
                what.set_position((left / WIDTH, bottom))
        with written_whole(path, "wb") as file:
            self.figure.savefig(file, format="png")


def draw(path, view, others, titles, notes):
    """The whole picture. view: views.tile.View. others: [(name, f* in colours (rows, columns, 3))], the tile's own
    first. titles: the tile's name, texts about it, and at the end a remark or "". notes: what is not shown and why.
    """
    page = Page()
    name, *lines, remark = titles
    page.text(EDGE, 0.15, name, min(14, 600 / len(name)), weight="bold")
    page.text(WIDTH - EDGE, 0.15, remark, 10, weight="bold", color="#B00000", ha="right")
    lines = textwrap.wrap("; ".join(line.replace(" ", "\xa0") for line in lines), 145, break_on_hyphens=False)
    page.text(EDGE, 0.45, "\n".join(lines), 9, color="0.25", linespacing=1.25)
    columns = {EDGE: LEFT, WIDTH - EDGE - RIGHT: RIGHT}
    left, right = columns
    tops = dict.fromkeys(columns, 0.6 + 0.17 * len(lines))

    def add(column, block, *arguments):
        tops[column] += block(page, column, tops[column], columns[column], *arguments) + 0.2
    for key, sensor in view.sensors.items():
        if sensor.kind == "image":
            add(left, image_block, view, key)
        elif view.present[key]:
            add(right, dates_block, view, key)
            add(right, curves_block, view, key)
    add(left, tokens_block, view)
    add(min(tops, key=tops.get), features_block, others)
    bottom = max(tops.values())
    if view.probabilities is not None:
        bottom += classes_block(page, EDGE, bottom, WIDTH - 2 * EDGE, view) + 0.2
    lines = [line for note in notes for line in textwrap.wrap(f"Not shown: {note}", 150)]
    page.text(EDGE, bottom, "\n".join(lines), color="0.25")
    page.save(path, bottom + 0.1 + 0.15 * len(lines))


def frame(axes, view, width, size=1, color=ORANGE):
    """A frame outside the patch, of so many pixels a side, white around it to be seen on anything. width: of the axes.
    """
    row, column = divmod(view.patch, view.grid[1])
    gap = LINE / 72 / width * view.grid[1] * size / 2                         # half a line, in pixels
    corner, side = (column * size - 0.5 - gap, row * size - 0.5 - gap), size + 2 * gap
    for wide, edge in ((LINE + 1.4, "white"), (LINE, color)):
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=edge, linewidth=wide, clip_on=False,
                                 zorder=4))


# ---- images ---------------------------------------------------------------------------------------------------------

def image_block(page, left, top, width, view, key):
    """The image, what the model is left, what it makes of the rest."""
    sensor, image, m = view.sensors[key], view.values[key], list(view.sensors).index(key)
    bands, stretch, size = bands_to_draw(sensor.bands), stretch_of(image), sensor.patch
    name = ", ".join(sensor.bands[i] for i in bands) if len(set(bands)) == 3 else f"{sensor.bands[0]}, in grey"
    picture = drawn(image, sensor.bands, stretch)
    pictures = {"there": picture}
    if key in view.rebuilt:
        mask = np.kron(view.is_masked[m].reshape(view.grid), np.ones((size, size)))[..., None] > 0
        pictures["what the model sees"] = np.where(mask, 0.8, picture)
        pictures["reconstructed"] = np.where(mask, drawn(np.nan_to_num(view.rebuilt[key]), sensor.bands, stretch),
                                             0.75 + 0.25 * picture)
    text = "Orange frame: the patch that all panels look at."
    if key in view.rebuilt:
        text = f"Masked patches in grey, then as the decoder makes them, seen ones pale. {text}"
    height = page.heading(left, top, width, f"{key}: the image, bands {name}", text)
    wide = (width - 0.2) / 3
    high = wide * image.shape[1] / image.shape[2]
    for i, (what, picture) in enumerate(pictures.items()):
        axes = page.panel(left + i * (wide + 0.1), top + height + 0.15, wide, high)
        axes.imshow(picture, interpolation="antialiased")
        axes.set_title(what, size=SMALL, pad=3)
        frame(axes, view, wide, size)
    return height + 0.15 + high


# ---- series ---------------------------------------------------------------------------------------------------------

def month_ticks(days, sensor):
    """Where months begin in a list of day numbers, and their names."""
    first = np.datetime64(sensor.origin or "2019-12-31")                      # day 1 is 1 January, of a leap year
    months = (first + np.asarray(days)).astype("datetime64[M]")
    starts = [i for i in range(len(months)) if i == 0 or months[i] != months[i - 1]]
    starts = [i for i, after in zip(starts, [*starts[1:], len(months)]) if after - i > 1] or starts[:1]    # it has room
    return starts, [months[i].astype(object).strftime("%b") for i in starts]


def dark_third(values):
    """Of a series (T, C, H, W) the darkest third of the dates, rounded up: without the clouds."""
    return values[values.mean((1, 2, 3)).argsort()[:-(-len(values) // 3)]]


def dates_block(page, left, top, width, view, key):
    """A thumbnail of each date, above the attention it gets."""
    sensor, days, values = view.sensors[key], view.days[key], view.values[key]
    attention, kept = view.attention[key][view.patch], view.is_kept[key][view.patch]
    bands = bands_to_draw(sensor.bands)
    name = "natural colours" if len(set(bands)) == 3 else f"{sensor.bands[0]} in grey"
    dates, their = ("1 date", "its") if len(days) == 1 else (f"{len(days)} dates", "their")
    height = page.heading(left, top, width, f"{key}: {dates} in {name}, and {their} attention",
                          "Bars: the framed patch's; ticks: all patches'; orange: the "
                          f"{100 * view.share:.0f} % with most" + (", reconstructed." if view.rebuilt else "."))
    pictures = drawn(values, sensor.bands, stretch_of(dark_third(values) if len(set(bands)) == 3 else values))
    rows = -(-len(days) // A_ROW)
    in_row = -(-len(days) // rows)
    side = min(width / in_row, 0.6)
    high, mean = side * values.shape[-2] / values.shape[-1], view.attention[key].mean(0)
    most = 1.08 * max(attention.max(), mean.max())
    for start in range(0, len(days), in_row):
        part = slice(start, start + in_row)
        count = len(days[part])
        strip = page.panel(left, top + height, side * count, high)
        for i, picture in enumerate(pictures[part]):
            strip.imshow(picture, extent=(i - 0.46, i + 0.46, -0.46, 0.46), aspect="auto", interpolation="antialiased")
        bars = page.panel(left, top + height + high + 0.03, side * count, 0.45)
        bars.bar(range(count), attention[part], 0.8, color=[ORANGE if k else "0.7" for k in kept[part]])
        bars.plot(range(count), mean[part], "_", color="black", markersize=6)
        starts, names = month_ticks(days[part], sensor)
        bars.set(xlim=(-0.5, count - 0.5), ylim=(0, most))
        strip.set(xlim=(-0.5, count - 0.5), ylim=(-0.5, 0.5))
        bars.set_xticks(starts, names, size=SMALL)
        bars.tick_params(length=2, pad=1.5)
        for axes, edges in ((strip, ("top", "right", "left", "bottom")), (bars, ("top", "right", "left"))):
            axes.spines[list(edges)].set_visible(False)
        for i, is_kept in enumerate(kept[part]):
            strip.add_patch(Rectangle((i - 0.46, -0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE if is_kept else "0.6",
                                      linewidth=2 if is_kept else 0.4))
        height += high + 0.68
    return height


def curves_block(page, left, top, width, view, key):
    """Bands of the patch over the year, beside what was reconstructed."""
    sensor, days, kept = view.sensors[key], view.days[key], view.is_kept[key][view.patch]
    is_rebuilt = key in view.rebuilt and view.is_masked[list(view.sensors).index(key), view.patch]
    text = "" if key not in view.rebuilt else (
        "; rings: reconstructed (token masked)" if is_rebuilt else " (token not masked: no reconstruction)")
    height = page.heading(left, top, width, f"{key}: the framed patch over the year, in the units of the file",
                          f"Black: dates kept{text}; grey: all dates, cut off if far away.") + 0.12
    chosen = np.unique(np.linspace(0, len(sensor.bands) - 1, min(CURVES, len(sensor.bands))).round().astype(int))
    gap = 0.42
    wide = width / max(2, len(chosen)) - gap
    for i, band in enumerate(chosen):
        axes = page.panel(left + gap + i * (wide + gap), top + height, wide, 0.85)
        curve = view.curves[key][view.patch, :, band]
        near = curve[kept]
        axes.plot(days, curve, ".-", color="0.7", markersize=2.5, linewidth=0.8)
        axes.plot(days[kept], curve[kept], ".", color="black", markersize=6)
        if is_rebuilt:
            axes.plot(days[kept], view.rebuilt[key][view.patch, kept, band], "o", color=ORANGE, markersize=5,
                      fillstyle="none", markeredgewidth=1.4)
            near = np.concatenate([near, view.rebuilt[key][view.patch, kept, band]])
        margin = 0.15 * (near.max() - near.min()) or 1
        axes.set_ylim(near.min() - margin, near.max() + margin)
        axes.set_title(sensor.bands[band], size=SMALL, pad=2)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        starts, names = month_ticks(np.arange(days.min(), days.max() + 1), sensor)
        every = max(1, round(len(starts) / (3 if wide < 1.5 else 6)))
        axes.set_xticks((days.min() + np.array(starts))[1::every], names[1::every])
        axes.tick_params(labelsize=SMALL - 0.5, length=2, pad=1.5)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    return height + 1.05


# ---- tokens ---------------------------------------------------------------------------------------------------------

def tokens_block(page, left, top, width, view):
    """Which tokens are masked, and how similar the patch's are to all others: a row a sensor."""
    keys, is_drawn = list(view.sensors), view.is_masked is not None
    text = "First column: tokens that are masked, in white (K of equation 4). Others: c" if is_drawn else "C"
    height = page.heading(left, top, width, f"tokens: {'masks, and ' if is_drawn else ''}similarity (figure 4)",
                          f"{text}osine of the framed patch's token and all tokens of the tile" + (
                              "; at the black frames the contrastive loss wants 1." if len(keys) > 1 else ".")) + 0.15
    side = min(0.7, (width - 1.5) / (len(keys) + is_drawn))
    high = min(side, side * view.grid[0] / view.grid[1])
    start = left + 0.5 + is_drawn * (side + 0.3)
    for m, key in enumerate(keys):
        page.text(left + 0.4, top + height + high / 2, key, SMALL, ha="right", va="center")
        if is_drawn:
            axes = page.panel(left + 0.5, top + height, side, high)
            cells(axes, view.is_masked[m].reshape(view.grid), ListedColormap([BLUE, "white"]), 0, 1)
            axes.set_title("" if m else "masked", size=SMALL, pad=3)
            frame(axes, view, side)
        for n, other in enumerate(keys):
            axes = page.panel(start + n * (side + 0.08), top + height, side, high)
            image = cells(axes, view.similarity[m, n].reshape(view.grid), SIMILAR, -1, 1)
            axes.set_title("" if m else f"to {other}", size=SMALL, pad=3)
            frame(axes, view, side, color=ORANGE if m == n else "black")
        height += high + 0.08
    long = len(keys) * (high + 0.08)
    bar = page.panel(start + len(keys) * (side + 0.08) + 0.1, top + height - long, 0.12, long - 0.08)
    page.figure.colorbar(image, cax=bar, ticks=(-1, 0, 1)).ax.tick_params(labelsize=SMALL, length=2, pad=2)
    return height


def cells(axes, values, colors, low, high):
    """A grid of patches."""
    axes.set_facecolor("0.9")
    axes.spines[:].set_color("0.6")
    return axes.imshow(values, cmap=colors, vmin=low, vmax=high)


# ---- features and classes -------------------------------------------------------------------------------------------

def features_block(page, left, top, width, others):
    """f* of tiles as colours."""
    height = page.heading(left, top, width, "f* of this tile (the first) and of others",
                          "Three principal components of the patches: lightness, blue to yellow, green to red. What is "
                          "alike to the model has one colour.")
    side = width / TILES_A_ROW - 0.1
    for start in range(0, len(others), TILES_A_ROW):
        row = others[start:start + TILES_A_ROW]
        high = max(side * picture.shape[0] / picture.shape[1] for _, picture in row)
        for i, (name, picture) in enumerate(row):
            axes = page.panel(left + i * (side + 0.1), top + height, side, high)
            axes.imshow(picture)
            lines = textwrap.wrap(name, int(side * 16), max_lines=2, placeholder="...")
            axes.set_xlabel("\n".join(lines), size=SMALL - 0.5, labelpad=2, weight="normal" if start + i else "bold")
        height += high + 0.35
    return height


def classes_block(page, left, top, width, view):
    """Probabilities as bars, in columns."""
    height = page.heading(left, top, width, "classes",
                          "Probabilities of the fine-tuned model; blue, with a dot: the tile has the class.")
    rows = -(-len(view.classes) // BAR_COLUMNS)
    wide = width / BAR_COLUMNS
    for start in range(0, len(view.classes), rows):
        part = slice(start, start + rows)
        names, truth = view.classes[part], view.truth[part]
        axes = page.panel(left + start // rows * wide + 1.1, top + height, wide - 1.25, 0.15 * rows)
        axes.barh(range(len(names)), view.probabilities[part], 0.7, color=[BLUE if true else "0.7" for true in truth])
        axes.axvline(0.5, color="0.3", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(names)), [f"{name[:15]} {'•' if true else '  '}" for name, true in
                                            zip(names, truth)], size=SMALL)
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"), size=SMALL)
        axes.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
        axes.tick_params(length=2, pad=2)
        axes.spines[["top", "right"]].set_visible(False)
    return height + 0.15 * rows + 0.2
