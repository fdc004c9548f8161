"""Gather freely licensed pictures from Debian packages for training on composed scenes.

    apt-get install tuxpaint-stamps-default openclipart-png gcompris-qt-data gnome-backgrounds mate-backgrounds \
        ukui-wallpapers lomiri-wallpapers-20.04 plasma-workspace-wallpapers
    python examples/collect_pictures.py pictures

The folder then holds ``cutouts/*.png`` (RGBA, cropped to the visible part), ``backgrounds/*.jpg`` and
``sources.txt`` with every picture's package and the licences its package states. ``PictureLibrary("pictures")``
reads it. The pictures are needed to train again, never to use a trained tracker.
"""

import io
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from mmtrackers.cli.ending import run_script

# packages of cut-outs, and where their pictures lie
CUTOUT_ROOTS = {
    "tuxpaint-stamps-default": "/usr/share/tuxpaint/stamps/",
    "openclipart-png": "/usr/share/openclipart/png/",
}
ACTIVITIES_PACKAGE = "gcompris-qt-data"
BACKGROUND_PACKAGES = (
    "gnome-backgrounds",
    "mate-backgrounds",
    "ukui-wallpapers",
    "lomiri-wallpapers-20.04",
    "plasma-workspace-wallpapers",
)
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}
BACKGROUND_ROOTS = ("/usr/share/backgrounds/", "/usr/share/wallpapers/")
# glyphs and drawn outlines teach a tracker nothing about things in photographs
SKIPPED_CUTOUTS = ("symbols/alphabets", "symbols/math", "symbols/music", "symbols/shapes", "/cartoon/", "png/shapes",
                   "png/signs_and_symbols", "png/special", "computer/icons", "computer/buttons", "recreation/games",
                   "aiga-symbols", "roadsigns", "people/stickmen", "people/smilies")
SKIMAGE_SAMPLES = ("astronaut", "chelsea", "coffee", "rocket", "cat", "hubble_deep_field", "immunohistochemistry",
                   "retina", "brick", "grass", "gravel", "camera", "coins", "colorwheel")


def package_files(package: str, suffixes: Collection[str] = PICTURE_SUFFIXES) -> list[Path]:
    """Files of an installed Debian package, its pictures by default (empty when it is not installed)."""
    try:
        listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    paths = (Path(line) for line in listing.stdout.splitlines())
    return sorted(path for path in paths if path.suffix.lower() in suffixes and path.is_file())


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
    if "Public Domain Dedication" in text:
        found.append("public-domain")
    return ", ".join(sorted({licence.replace(" ", "-") for licence in found})) or "see " + str(path)


def short_name(path: Path, root: str) -> str:
    """A flat file name that keeps the picture's place in its package readable."""
    return re.sub(r"[^A-Za-z0-9]+", "_", str(path.with_suffix("")).removeprefix(root)).strip("_").lower()


def save_cutout(picture: Image.Image, target: Path, longest: int) -> bool:
    """Write a picture cropped to its visible part; False where it has no usable outline."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda value: 255 * (value >= 128)).getbbox()
    if box is None:
        return False
    picture = picture.crop(box)
    coverage = float((np.asarray(picture)[..., 3] >= 128).mean())
    if min(picture.size) < 24 or coverage < 0.15:
        return False
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    if min(picture.size) < 16:
        return False
    picture.save(target)
    return True


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


def save_from(path: Path, save: Callable[[Image.Image, Path, int], bool], target: Path, longest: int) -> bool:
    """Apply one of the two functions above to a file; one that cannot be read is named and left out."""
    try:
        with Image.open(path) as picture:
            return save(picture, target, longest)
    except (OSError, Image.DecompressionBombError) as error:
        typer.echo(f"skipped {path}: {error}", err=True)
        return False


def collect_cutouts(out: Path, longest: int) -> list[str]:
    """Copy the stamps and clip art with an outline; returns their lines for ``sources.txt``."""
    lines = []
    for package, root in CUTOUT_ROOTS.items():
        for path in package_files(package):
            if not str(path).startswith(root) or any(part in str(path) for part in SKIPPED_CUTOUTS):
                continue
            name = short_name(path, root) + ".png"
            if save_from(path, save_cutout, out / name, longest):
                lines.append(f"cutouts/{name}\t{package}\t{path}")
    return lines


def resource_pictures(path: Path) -> Iterator[Image.Image]:
    """The WebP pictures inside a Qt resource file, which holds them as they are."""
    content = path.read_bytes()
    for found in re.finditer(rb"RIFF(....)WEBP", content, flags=re.S):
        size = int.from_bytes(found[1], "little") + 8
        with Image.open(io.BytesIO(content[found.start() : found.start() + size])) as picture:
            yield picture


def collect_activities(out: Path, cutout_size: int, background_size: int) -> list[str]:
    """Photographs and cut-outs of GCompris's activities; returns their lines for ``sources.txt``."""
    lines = []
    for path in package_files(ACTIVITIES_PACKAGE, {".rcc"}):
        for number, picture in enumerate(resource_pictures(path)):
            name = f"gcompris_{path.stem}_{number}"
            if picture.mode == "RGBA":
                kept, name = save_cutout(picture, out / "cutouts" / f"{name}.png", cutout_size), f"cutouts/{name}.png"
            else:
                kept = save_background(picture, out / "backgrounds" / f"{name}.jpg", background_size)
                name = f"backgrounds/{name}.jpg"
            if kept:
                lines.append(f"{name}\t{ACTIVITIES_PACKAGE}\t{path} ({number})")
    return lines


def collect_backgrounds(out: Path, longest: int) -> list[str]:
    """Copy one size of every wallpaper, and scikit-image's samples where installed."""
    lines = []
    for package in BACKGROUND_PACKAGES:
        paths = [path for path in package_files(package) if str(path).startswith(BACKGROUND_ROOTS)]
        for path in largest_of_each(paths):
            root = next(root for root in BACKGROUND_ROOTS if str(path).startswith(root))
            name = short_name(path, root) + ".jpg"
            if save_from(path, save_background, out / name, longest):
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
            if save_from(path, save_background, out / name, longest):
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
    lines += collect_activities(out, cutout_size, background_size)
    if not lines:
        wanted = " ".join((*CUTOUT_ROOTS, ACTIVITIES_PACKAGE, *BACKGROUND_PACKAGES))
        typer.echo(f"No pictures found. Install the packages first: apt-get install {wanted}", err=True)
        raise typer.Exit(1)
    counts = Counter(line.split("\t")[1] for line in lines)
    head = [f"# {name}: {count} pictures; licences: "
            + ("BSD-3-Clause and public domain" if name == "scikit-image" else package_licences(name))
            for name, count in counts.items()]
    (out / "sources.txt").write_text("\n".join(head + lines) + "\n")
    typer.echo("\n".join(head))


if __name__ == "__main__":
    run_script(lambda: typer.run(main))
