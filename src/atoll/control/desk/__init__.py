"""What operators reach: verbs over the store, the REST API, the page."""
