"""Object storage for uploads and results: a directory, or an S3-compatible bucket.

    uploads/<job-id>                              what the client sent
    results/<job-id>/<attempt>/document.json      the result
    results/<job-id>/<attempt>/files/<name>       its media

Keys are made by the service only. An object is there whole or not at all.
"""
