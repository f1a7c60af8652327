"""Many images in one task: rows become a plan, the executor makes its images, the summary counts the results.

In reading order:

- `row_files`: reads rows from CSV and JSON files
- `rows`: reads rows from a list, a data frame or a file, up to a limit
- `columns`: which columns are request fields, and which are labels
- `cells`: the values of cells
- `prompt_columns`: columns in a prompt
- `row_file_names`: columns in a file name
- `image_specs`: rows turned into checked requests
- `drafts`: the images of a plan that is being made, in a temporary file
- `planner`: makes the plan: input images, fingerprints, file names
- `known_images`: images that have a record under an earlier fingerprint
- `plan`: the plan, as it is stored
- `shards`: the plan of a wide batch, divided into shards
- `forecast`: which images would be bought, and their estimated cost
- `executor`: makes the images, with bounded concurrency
- `summary`: counts and stores the results
- `merge`: the results of shards, merged
"""
