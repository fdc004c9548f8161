"""Gather freely licensed pictures from Debian packages for training on composed scenes.

    apt-get install tuxpaint-stamps-default gnome-backgrounds mate-backgrounds ukui-wallpapers \
        lomiri-wallpapers-20.04 plasma-workspace-wallpapers
    python examples/collect_pictures.py pictures

The folder then holds ``cutouts/*.png`` (RGBA, cropped to the visible part), ``backgrounds/*.jpg`` and
``sources.txt`` with every picture's package and the licences its package states. ``PictureLibrary("pictures")``
reads it. The pictures are needed to train again, never to use a trained tracker.
"""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

STAMPS_PACKAGE = "tuxpaint-stamps-default"
BACKGROUND_PACKAGES = (
    "gnome-backgrounds",
    "mate-backgrounds",
    "ukui-wallpapers",
    "lomiri-wallpapers-20.04",
    "plasma-workspace-wallpapers",
)
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}
STAMP_ROOT = "/usr/share/tuxpaint/stamps/"
BACKGROUND_ROOTS = ("/usr/share/backgrounds/", "/usr/share/wallpapers/")
# glyphs and drawn outlines teach a tracker nothing about things in photographs
SKIPPED_STAMPS = ("symbols/alphabets", "symbols/math", "symbols/music", "symbols/shapes", "/cartoon/")
SKIMAGE_SAMPLES = ("astronaut", "chelsea", "coffee", "rocket", "cat", "hubble_deep_field", "immunohistochemistry",
                   "retina", "brick", "grass", "gravel", "camera", "coins", "colorwheel")


def package_files(package: str) -> list[Path]:
    """Picture files of an installed Debian package (empty when it is not installed)."""
    try:
        listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    paths = (Path(line) for line in listing.stdout.splitlines())
    return sorted(path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())


def package_licences(package: str) -> str:
    """The distinct licence lines of the package's Debian copyright file."""
    path = Path(f"/usr/share/doc/{package}/copyright")
    if not path.is_file():
        return "unknown (no Debian copyright file)"
    text = path.read_text(errors="replace")
    found = re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", text, flags=re.M | re.I)
    found += re.findall(r"\b(CC0(?:-1\.0)?|CC[- ]BY(?:-SA)?[- ]\d\.\d)\b", text)
    for alike, version in re.findall(r"Creative Commons Attribution(-ShareAlike)? (\d\.\d)", text):
        found.append(f"CC-BY{'-SA' if alike else ''}-{version}")
    if "GNU General Public License" in text and not any(licence.startswith("GPL") for licence in found):
        found.append("GPL-2+")
    return ", ".join(sorted({licence.replace(" ", "-") for licence in found})) or "see " + str(path)


def short_name(path: Path, root: str) -> str:
    """A flat file name that keeps the picture's place in its package readable."""
    return re.sub(r"[^A-Za-z0-9]+", "_", str(path.with_suffix("")).removeprefix(root)).strip("_").lower()


def save_cutout(source: Path, target: Path, longest: int) -> bool:
    """Write ``source`` cropped to its visible part; False for pictures without a usable outline."""
    with Image.open(source) as opened:
        picture = opened.convert("RGBA")
    box = picture.getchannel("A").point(lambda value: 255 * (value >= 128)).getbbox()
    if box is None:
        return False
    picture = picture.crop(box)
    coverage = float((np.asarray(picture)[..., 3] >= 128).mean())
    if min(picture.size) < 24 or coverage < 0.15:
        return False
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    picture.save(target)
    return min(picture.size) >= 16


def largest_of_each(paths: list[Path]) -> list[Path]:
    """One file per wallpaper: packages hold the same picture in many sizes (``Name/contents/images/WxH.jpg``)."""
    best: dict[str, Path] = {}
    for path in paths:
        if re.search(r"screenshot", path.name):
            key, rank = str(path.parents[1]), 0
        elif re.fullmatch(r"\d+x\d+", path.stem):
            key, rank = str(path.parents[2]), path.stat().st_size
            if "dark" in path.parent.name:
                key += "/dark"
        else:
            key, rank = re.sub(r"_\d+x\d+$", "", str(path.with_suffix(""))), path.stat().st_size
        old = best.get(key)
        if old is None or (0 if "screenshot" in old.name else old.stat().st_size) < rank:
            best[key] = path
    return sorted(best.values())


def save_background(picture: Image.Image, target: Path, longest: int) -> bool:
    """Write a photo no longer than ``longest``; False where it is nearly flat (drawn gradients)."""
    picture = picture.convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    detail = float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())
    if detail < 1.5 or min(picture.size) < 160:
        return False
    picture.save(target, quality=92)
    return True


def collect_cutouts(out: Path, longest: int) -> list[str]:
    """Copy the stamps with an outline; returns their lines for ``sources.txt``."""
    lines = []
    for path in package_files(STAMPS_PACKAGE):
        if not str(path).startswith(STAMP_ROOT) or any(part in str(path) for part in SKIPPED_STAMPS):
            continue
        name = short_name(path, STAMP_ROOT) + ".png"
        if save_cutout(path, out / name, longest):
            lines.append(f"cutouts/{name}\t{STAMPS_PACKAGE}\t{path}")
    return lines


def collect_backgrounds(out: Path, longest: int) -> list[str]:
    """Copy one size of every wallpaper, and scikit-image's samples where installed."""
    lines = []
    for package in BACKGROUND_PACKAGES:
        paths = [path for path in package_files(package) if str(path).startswith(BACKGROUND_ROOTS)]
        for path in largest_of_each(paths):
            root = next(root for root in BACKGROUND_ROOTS if str(path).startswith(root))
            name = short_name(path, root) + ".jpg"
            try:
                with Image.open(path) as picture:
                    kept = save_background(picture, out / name, longest)
            except OSError as error:
                typer.echo(f"skipped {path}: {error}", err=True)
                continue
            if kept:
                lines.append(f"backgrounds/{name}\t{package}\t{path}")
    return lines + collect_skimage(out, longest)


def collect_skimage(out: Path, longest: int) -> list[str]:
    """The samples that come inside scikit-image itself (nothing is downloaded)."""
    try:
        import skimage
    except ImportError:
        return []
    lines = []
    for path in sorted((Path(skimage.__file__).parent / "data").iterdir()):
        if path.stem in SKIMAGE_SAMPLES and path.suffix in PICTURE_SUFFIXES:
            name = f"skimage_{path.stem}.jpg"
            with Image.open(path) as picture:
                if save_background(picture, out / name, longest):
                    lines.append(f"backgrounds/{name}\tscikit-image\t{path.name}")
    return lines


def main(
    out: Annotated[Path, typer.Argument(help="folder to fill")],
    cutout_size: Annotated[int, typer.Option(help="longest side of a cut-out in pixels")] = 160,
    background_size: Annotated[int, typer.Option(help="longest side of a background in pixels")] = 640,
) -> None:
    """Collect cut-outs and backgrounds from the installed packages into OUT."""
    for name in ("cutouts", "backgrounds"):
        (out / name).mkdir(parents=True, exist_ok=True)
    lines = collect_cutouts(out / "cutouts", cutout_size) + collect_backgrounds(out / "backgrounds", background_size)
    if not lines:
        wanted = " ".join((STAMPS_PACKAGE, *BACKGROUND_PACKAGES))
        typer.echo(f"No pictures found. Install the packages first: apt-get install {wanted}", err=True)
        raise typer.Exit(1)
    counts = Counter(line.split("\t")[1] for line in lines)
    head = [f"# {name}: {count} pictures; licences: "
            + ("BSD-3-Clause and public domain" if name == "scikit-image" else package_licences(name))
            for name, count in counts.items()]
    (out / "sources.txt").write_text("\n".join(head + lines) + "\n")
    typer.echo("\n".join(head))


if __name__ == "__main__":
    typer.run(main)
