"""The page to try the service on, and the API's reference; every asset is served from here."""
