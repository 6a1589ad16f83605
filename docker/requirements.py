"""Prints the dependencies that pyproject.toml in the working directory declares, one a line."""

import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
