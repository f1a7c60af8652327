"""The life of one image, stage by stage. Every image goes this way: of a task, of a mapped task, of a batch.

In reading order:

- `order`: what one attempt asks for
- `decision`: what to do about what the ledger holds: a pure function, a table
- `history`: what is known of the image, and which record decides
- `lifecycle`: joins the stages: look, decide, do
- `results`: what a step comes to
- `context`: what the stages need from outside
- `task_state`: what Airflow remembers beside the ledger
- `inputs`: input images, read and checked before anything is sent
- `submission`: claims, sends, writes the answer down
- `waiting`: polls a job until it ends
- `fetching`: from a link into memory
- `landing`: verifies and writes an image, then its record
- `copying`: returns or copies what has landed before
- `reuse_decision`: what to do about what other tasks have: a pure function
- `sharing`: images that the tasks of one DAG have in common
- `saved_requests`: what the first attempt wanted, for retries
- `thumbnails`: small copies for the gallery
- `approval`: what a person is shown, bound to its content
"""
