"""The application that Flower is started with: it acts on tasks only when it knows their names."""

from reference_worker import celery_application

app = celery_application()
