"""The style sheet of the report (`style.css`): two colour schemes, print, any width from a phone's on. No font, no
image, no import.
"""

from pathlib import Path

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CSS = "\n" + Path(__file__).with_name("style.css").read_text("utf-8")
