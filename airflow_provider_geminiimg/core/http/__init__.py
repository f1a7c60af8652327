"""The only code that opens sockets to gateways and hosts of images.

In reading order: `transport` sends calls, each as one `exchange`, whose body `response_body` reads within
`json_limits`; `rate_limit` says when, `key_auth` adds the key, `poll_client` is the client of polls. `download` fetches
images, without the key, from `public_addresses` into a `download_buffer`. `tls` and `log_filter` serve them all.
"""
