"""What leaves this package as text holds no secret, no link, no prompt and no control character.

In reading order:

- `scrubbing`: takes keys, links, image bytes and prompts out of a text
- `printable`: makes text from outside fit to be shown
- `ranges`: numbers from outside, each within what it can mean
"""
