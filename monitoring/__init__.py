"""What Prometheus and Grafana are given: alert rules, and the dashboard with the code that writes it."""
