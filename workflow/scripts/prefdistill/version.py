"""The version, in one place; a test holds CITATION.cff and CHANGELOG.md to it."""

__version__ = "0.1.0"
