"""A synchronous Python client of the HTTP API.

from service.client import Client

with Client("http://127.0.0.1:8000") as vitrine:
    answer = vitrine.classify("photo.jpg")
    job = vitrine.generate_image({"prompt": "a red circle"})
    for job in vitrine.follow(job["id"]):
        print(job["progress"]["percent"])
"""

from service.client.client import Client
from service.client.errors import ApiError, ClientError, ServiceNotRunning

__all__ = ["ApiError", "Client", "ClientError", "ServiceNotRunning"]
