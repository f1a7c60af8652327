"""The model catalogue: fields, sizes, ratios, prices and limits of each model at each gateway, with sources.

In reading order:

- `google_models`: Google's data of each model
- `model_specs`: the rows, one per gateway, model and operation
- `lookup`: finds the row of a model id; the limits of the gateways
"""
