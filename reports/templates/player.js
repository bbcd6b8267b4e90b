// Moves a line over the timeline while the recording plays; a click on the timeline, or a button of a moment, goes there.
"use strict";
const player = document.getElementById("player");
const drawing = document.getElementById(player.dataset.figure).querySelector("svg");
const [length, start, end] = ["length", "start", "end"].map(name => Number(player.dataset[name]));
const frame = document.createElement("div");
const cursor = document.createElement("div");
frame.className = "timed";
cursor.className = "cursor";
cursor.hidden = true;
drawing.before(frame);
frame.append(drawing, cursor);
player.addEventListener("timeupdate", () => {
  cursor.hidden = false;
  cursor.style.left = `${100 * (start + (end - start) * Math.min(player.currentTime / length, 1))}%`;
});
const go = seconds => {
  player.currentTime = Math.max(0, Math.min(seconds, length));
  player.play();
};
frame.addEventListener("click", event => {
  const box = frame.getBoundingClientRect();
  go(length * ((event.clientX - box.left) / box.width - start) / (end - start));
});
for (const button of document.querySelectorAll("button[data-at]")) {
  button.addEventListener("click", () => go(Number(button.dataset.at)));
}
