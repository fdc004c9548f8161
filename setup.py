"""What pyproject.toml cannot say: in a package index, the README's links and pictures lead to the repository."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLACE = f"{PROJECT['urls']['Source']}/{{kind}}/v{PROJECT['version']}/"


def absolute(match: re.Match[str]) -> str:
    """A relative link as an absolute one, to the version's page or picture."""
    picture, text, target = match.groups()
    return f"{picture}[{text}]({PLACE.format(kind='raw' if picture else 'blob')}{target})"


README = (HERE / "README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(r"(!?)\[([^\]]*)\]\(([^):#]+)\)", absolute, README),
    long_description_content_type="text/markdown",
)
