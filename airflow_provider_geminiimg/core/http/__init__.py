"""HTTP: the only code that connects to gateways and to hosts of images.

In reading order:

- `transport`: sends the calls of one gateway account
- `exchange`: one call: send, receive, and whether an error means that money was spent
- `response_body`: reads and decompresses a response body
- `json_limits`: bounds the size and depth of JSON responses
- `rate_limit`: limits the calls per minute, and the simultaneous ones
- `shared_limits`: this process's part of the limits that all processes share
- `uploads`: the handles of input images that were uploaded
- `key_auth`: adds the API key
- `poll_client`: the HTTP client of polls
- `download_client`: the HTTP client of downloads
- `download`: downloads an image, without the API key
- `download_buffer`: the memory of a download
- `public_addresses`: resolves hosts, and tells public from private IP addresses
- `tls`: TLS settings
- `log_filter`: removes URLs' queries from the log lines of the HTTP libraries
"""
