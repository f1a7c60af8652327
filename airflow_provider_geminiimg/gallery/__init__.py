"""The gallery: a run's images in Airflow's own pages, for whoever may read its DAG.

What must stay true: what is shown comes from the ledger, never from an XCom, which a user can edit; every address but
the page's own asks Airflow whether this user may read this DAG; whatever people or gateways wrote is text.
"""
