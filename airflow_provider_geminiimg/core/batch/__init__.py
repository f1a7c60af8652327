"""Many images in one task: rows become a plan, an executor makes it, a summary says what became of it.

In reading order:

- `row_files`: reads files of rows
- `rows`: reads rows from anywhere, and no more than are allowed
- `columns`: which column is a field of a request, and which is a label
- `cells`: what the cells hold
- `prompt_columns`: columns in a prompt
- `row_file_names`: columns in a file name
- `image_specs`: rows turned into checked requests
- `planner`: makes the plan: inputs, fingerprints, names
- `known_images`: images that have a record under another fingerprint
- `plan`: the plan as the store keeps it
- `forecast`: what would be bought, and what that costs
- `executor`: makes the images, some at a time
- `summary`: what became of them
"""
