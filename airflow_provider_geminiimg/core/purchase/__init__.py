"""The purchase of one image, stage by stage. Single tasks, mapped tasks and batches all use this path.

In reading order:

- `order`: the request of one attempt
- `decision`: the next step for an image, given its record: a pure function
- `history`: the records of an image, and which of them decides
- `lifecycle`: runs the stages: read, decide, act
- `results`: the results of a step
- `context`: what the stages need from outside
- `task_state`: a copy of record ids in Airflow's task state store
- `inputs`: reads and checks input images before anything is sent
- `submission`: claims a record, sends the paid request, records the answer
- `waiting`: polls a job until it ends
- `fetching`: downloads a result into memory
- `landing`: verifies and stores an image, then updates its record
- `copying`: returns or copies an image that landed before
- `reuse_decision`: the next step for an image that another task may have: a pure function
- `sharing`: reuse of images between the tasks of one DAG
- `saved_requests`: the request of the first attempt, saved for retries
- `thumbnails`: small copies for the gallery
- `approval`: the images shown to a person, with their hashes
"""
