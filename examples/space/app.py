"""The app as a Hugging Face Space: this file, README.md and requirements.txt beside it."""

from mmtrackers.browser.app import App, Limits

# A visitor gets the embedded trackers only: no folder of the server, no repository of somebody's choice.
App(Limits(megabytes=50, seconds=20, side=1920, any_tracker=False)).launch()
