"""The gallery: images of a DAG in Airflow's own pages, for users who may read the DAG.

Invariants: the displayed data comes from the ledger, never from an XCom, which users can edit. Every address except the
page's own asks Airflow whether the user may read the DAG. Texts from people or gateways are displayed as plain text.

In reading order:

- `routes`: all addresses
- `plugin`: registers the gallery in Airflow
- `app`: the FastAPI application
- `queries`: reads records and images from the ledger
- `run_records`: the keys of a run's records, in the order of the pages
- `run_totals`: the totals of a run, from what is counted of it
- `addresses`: converts between record keys and addresses
- `page`: the HTML page and its static files
- `link`: the link on a task instance
- `markdown`: tables of images for reviews
"""
