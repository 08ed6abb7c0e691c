// Package image makes the disk of a virtual device: a product as its maker would
// ship it, with Debian below and Birthmark in it.
package image
