"use strict";
// Plays the notes of a hit, one hit at a time, and marks the bar of its picture that sounds. Nothing is fetched.
const AHEAD = 1500; // milliseconds of notes that are scheduled: the timers of a hidden page run once a second
let stop = () => {};

function tone(context, output, at, length, pitch) {
  const oscillator = new OscillatorNode(context, { type: "triangle", frequency: 440 * 2 ** ((pitch - 69) / 12) });
  const volume = new GainNode(context, { gain: 0 });
  volume.gain.setValueAtTime(0, at);
  volume.gain.linearRampToValueAtTime(0.2, at + 0.01);
  volume.gain.setTargetAtTime(0, at + Math.max(length - 0.03, 0.02), 0.02);
  oscillator.connect(volume).connect(output);
  oscillator.start(at);
  oscillator.stop(at + length + 0.1);
}

function play(button) {
  const { notes, bars, boxes } = JSON.parse(button.parentElement.dataset.sound);
  const until = Number(button.dataset.until);
  const mark = button.closest("figure").querySelector(".mark");
  const context = new AudioContext();
  const output = new DynamicsCompressorNode(context);
  output.connect(context.destination);
  const zero = context.currentTime + 0.1;
  let next = 0;

  const tick = () => {
    const now = (context.currentTime - zero) * 1000;
    if (now >= until) return stop();
    for (; next < notes.length && notes[next][0] < Math.min(now + AHEAD, until); next++) {
      const [start, length, pitch] = notes[next];
      tone(context, output, zero + start / 1000, Math.min(length, until - start) / 1000, pitch);
    }
    const box = boxes[bars.findLastIndex(time => time <= now)];
    if (!mark) return;
    mark.hidden = !box;
    ["left", "top", "width", "height"].forEach((side, i) => box && (mark.style[side] = box[i] + "%"));
  };
  const timer = setInterval(tick, 50);
  stop = () => {
    clearInterval(timer);
    context.close(); // ends what sounds and what is scheduled
    button.setAttribute("aria-pressed", "false");
    if (mark) mark.hidden = true;
    stop = () => {};
  };
  button.setAttribute("aria-pressed", "true");
  tick();
}

for (const button of document.querySelectorAll("button")) {
  button.hidden = false; // without scripts there are no buttons
  button.addEventListener("click", () => {
    const sounds = button.getAttribute("aria-pressed") === "true";
    stop();
    if (!sounds) play(button);
  });
}
