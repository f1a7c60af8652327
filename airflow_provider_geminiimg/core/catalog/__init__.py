"""What each gateway takes for each model: data with sources.

In reading order:

- `google_models`: what Google publishes about a model
- `model_specs`: the rows: gateway by model by operation
- `lookup`: finds the row of an id; limits of the gateways
"""
