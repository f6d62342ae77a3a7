"""Classification of videos: the part of `POST /v1/classify` that answers for them."""
