"""Redaction: no text that this package writes contains a secret, a signed link, a prompt or a control character.

In reading order:

- `scrubbing`: removes keys, URL queries, image bytes and prompts from a text
- `printable`: escapes control characters
- `ranges`: the valid ranges of numbers from outside
"""
