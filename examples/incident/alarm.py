"""Raises an alarm as a monitoring system does: a signed request to the webhook. `python alarm.py NUMBER [SERVER]`."""

import hmac
import json
import os
import sys
import urllib.request

number = sys.argv[1]
server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080"
body = json.dumps({"number": number, "service": "checkout"}).encode()
signature = hmac.new(os.environ["KNHK_WEBHOOK_ALARM"].encode(), body, "sha256").hexdigest()
headers = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": number}
request = urllib.request.Request(f"{server}/hooks/incident/alarm", body, headers)
with urllib.request.urlopen(request, timeout=30) as answer:
    print(answer.read().decode())
