"""The daemon `hobd`: the REST API, the loaded models, text in and text out. It never imports torch."""
