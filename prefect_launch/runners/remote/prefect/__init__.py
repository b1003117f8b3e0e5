"""Runner of the resource `prefect`: an item handed to another work pool of Prefect, and to its worker."""
