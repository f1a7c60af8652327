"""What arguments take. Light enough to be imported while a DAG is parsed.

In reading order:

- `texts`: values of users, before anything takes them apart
- `absent`: what stands for no value at all
- `incomplete`: templates that print a missing value as a word
- `arguments`: one reader for each kind of argument
- `request_values`: the fields of a request
- `hosts`: which addresses can be asked at all
- `task_arguments`: the rendered arguments of one task
"""
