// Control calls a library with a known hole, so that the gate has something to find.
package main

import mqtt "github.com/eclipse/paho.mqtt.golang"

func main() {
	mqtt.NewClient(mqtt.NewClientOptions()).Publish("topic", 1, false, "message").Wait()
}
