"""The operators of this package.

In reading order:

- `base`: rendered arguments and their checks; the stop signal for paid requests
- `arguments`: one table of argument parsers
- `image`: base class of the operators that buy one image
- `optional_image`: base class of the operators that edit an image, or generate one if there is none
- `generate`, `edit`, `submit`: those operators
- `batch`: many images in one task
- `collect`: stores images that were paid for and are not in storage
- `review`: asks a person to approve images
- `doctor`: checks an installation
- `retry_policy`: an optional retry policy for Airflow 3.3
"""
