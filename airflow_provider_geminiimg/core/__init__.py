"""What the provider does, without Airflow.

In reading order, each may import those before it:

- `redaction`: no secret, link or prompt in what is written
- `execution`: threads, memory, logs
- `validation`: what arguments take
- `catalog`: what each model takes and costs
- `storage`: disk, S3 and others
- `request`: what is asked for, checked
- `images`: what image bytes are
- `gateways`: one file a gateway, without I/O
- `http`: sockets
- `ledger`: what has been paid for
- `purchase`: the life of one image
- `batch`: many images in one task
- `reconcile`: what was left behind
"""
