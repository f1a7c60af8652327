"""Validation of arguments. Light enough to be imported while a DAG is parsed.

In reading order:

- `texts`: values in error messages, numbers as text, invalid Unicode
- `absent`: recognizes missing values
- `incomplete`: detects templates that render a missing value as a word, such as ``None``
- `arguments`: one parser for each kind of argument
- `request_values`: parsers of the fields of a request
- `hosts`: recognizes hosts that cannot be resolved
- `resolution`: a person's decision about a record
- `task_arguments`: the rendered arguments of one task
"""
